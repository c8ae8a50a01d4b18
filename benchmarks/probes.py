"""Blocks of probes through a transformer: products by a plan against torch.func on the same model, in one run.

    python benchmarks/probes.py                                  # 64 probes, Llama, d = 256, 8 layers, 64 tokens
    python benchmarks/probes.py --layers 2 --tokens 16 --probes 8
    python benchmarks/probes.py --dead 0.95                      # ReLU in place of SiLU, 95 % of it closed

The peer is eager attention under vmap: torch.func.vjp made once, its pullback mapped over the block; torch.func.jvp
mapped over the block.  Rates are over the operations that the plan counts; torch's own matrix product is timed too.
"""

from __future__ import annotations

import statistics
import time

import torch
import tyro
from torch import Tensor, nn

import specxai
from llama import Llama


def median(work, repeats: int) -> float:
    """Seconds, after one run that is not counted."""
    work()
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


class Whole(nn.Module):
    """All positions of the model's stream, behind its last block."""

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.stream(x)


def close(model: Llama, x: Tensor, share: float) -> None:
    """ReLU gates of which this share is closed at x, by their bias."""
    for block in model.blocks:
        block.gate = nn.Linear(block.gate.in_features, block.gate.out_features)
        block.activation = torch.relu
        found: list[Tensor] = []
        handle = block.gate.register_forward_hook(lambda module, args, output, found=found: found.append(output))
        with torch.no_grad():
            model.stream(x)
            handle.remove()
            block.gate.bias -= found[0].flatten().quantile(share)


def main(d: int = 256, layers: int = 8, tokens: int = 64, probes: int = 64, heads: int = 8, hidden: int = 688,
         dead: float = 0.0, repeats: int = 3, threads: int = 2) -> None:
    """Print ratios and rates.

    Args:
        d: width of the stream.
        layers: blocks of the model.
        tokens: positions.
        probes: columns of the block.
        heads: of attention.
        hidden: width of the gated feed-forward layers.
        dead: share of the feed-forward units that a ReLU closes; 0 leaves SiLU.
        repeats: whose median is taken.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Llama(d, layers, heads, heads, hidden).eval().requires_grad_(False)
    x = torch.randn(1, tokens, d)
    if dead:
        close(model, x, dead)
    net = Whole(model).eval()
    local = specxai.linearize(net, x)
    J = local.jacobian
    block = torch.randn(tokens * d, probes)
    given = block.T.reshape(probes, *x.shape)
    _, pullback = torch.func.vjp(net, x)
    peers = {"forward": lambda: torch.func.vmap(lambda v: torch.func.jvp(net, (x,), (v,))[1])(given),
             "adjoint": lambda: torch.func.vmap(lambda v: pullback(v)[0])(given)}
    ours = {"forward": lambda: J.matmat(block), "adjoint": lambda: J.rmatmat(block)}
    left, right = torch.randn(probes * tokens, d), torch.randn(d, hidden)
    rate = 2 * left.numel() * hidden / median(lambda: left @ right, 15) / 1e9
    print(f"d = {d}, {layers} layers, {tokens} tokens, {probes} probes, {dead:.0%} closed, {threads} threads; "
          f"agreement {local.agreement:.0e}; torch's matrix product {rate:.0f} GFLOP/s; "
          f"{J.flops / 1e9:.2f} GFLOP a column")
    for name, work in ours.items():
        spent, theirs = median(work, repeats), median(peers[name], repeats)
        want = peers[name]().detach().reshape(probes, -1).T
        error = float((work() - want).norm() / want.norm())
        reached = J.flops_run * probes / spent / 1e9
        print(f"{name}: {spent:.3f} s, torch.func {theirs:.3f} s, ratio {theirs / spent:.2f}; {reached:.0f} GFLOP/s, "
              f"{reached / rate:.0%} of torch's rate; error {error:.0e}")


if __name__ == "__main__":
    tyro.cli(main)
