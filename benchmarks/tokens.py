"""Every token's detached Jacobian block: shared adjoint products against Lanczos for each token by jvp and vjp.

    python benchmarks/tokens.py                                   # d = 256, 8 layers, 64 tokens, top 10 of each
    python benchmarks/tokens.py --layers 2 --tokens 16 --peer 1   # seconds

The model is a Llama in plain PyTorch.  SpecXAI linearises it unmodified with frozen gates.  The peer differentiates the
same model with the norms' scales, the attention's patterns and the activated factors detached by hand, token by token,
by Golub-Kahan-Lanczos with full reorthogonalisation until the residuals meet the tolerance; `--peer` tokens are timed,
and the rest counted as the mean of these.  Both give singular values, which are compared.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import specxai


class Llama(nn.Module):
    """The decoder's final hidden state at the last position, (1, d), of embeddings (1, T, d).

    detached   as the field's detached Jacobian has it: scales, patterns and activated factors are constants
    """

    def __init__(self, d: int, layers: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(d, heads, kv_heads, hidden) for _ in range(layers))
        self.norm = Norm(d)

    def forward(self, x: Tensor, detached: bool = False) -> Tensor:
        rotary = rotations(x.shape[1], self.blocks[0].width, x)
        for block in self.blocks:
            x = block(x, rotary, detached)
        return self.norm(x, detached)[:, -1]


class Norm(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(d))

    def forward(self, x: Tensor, detached: bool) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x * (scale.detach() if detached else scale)


class Block(nn.Module):
    def __init__(self, d: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.width, self.groups = d // heads, heads // kv_heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, out, bias=False) for out in (
            d, kv_heads * self.width, kv_heads * self.width, d))
        self.gate, self.up, self.down = (nn.Linear(*sizes, bias=False) for sizes in (
            (d, hidden), (d, hidden), (hidden, d)))
        self.before, self.after = Norm(d), Norm(d)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], detached: bool) -> Tensor:
        h = self.before(x, detached)
        q, k, v = (layer(h).unflatten(-1, (-1, self.width)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (part.repeat_interleave(self.groups, 1) for part in (k, v))
        scores = turned(q, rotary) @ turned(k, rotary).mT / self.width**0.5
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        pattern = scores.masked_fill(later, float("-inf")).softmax(-1)
        pattern = pattern.detach() if detached else pattern
        x = x + self.o((pattern @ v).transpose(1, 2).flatten(2))
        h = self.after(x, detached)
        active = F.silu(self.gate(h))
        return x + self.down((active.detach() if detached else active) * self.up(h))


def rotations(tokens: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    rate = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.outer(torch.arange(tokens, dtype=torch.float64), rate).repeat(1, 2)
    return angle.cos().to(like), angle.sin().to(like)


def turned(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * rotary[0] + torch.cat([-second, first], -1) * rotary[1]


def lanczos(model: Llama, x: Tensor, token: int, k: int, tol: float, generator: torch.Generator) -> tuple[Tensor, int]:
    """The k leading singular values of ∂y/∂x_token of the detached model, and the steps of Golub-Kahan-Lanczos."""
    def f(part: Tensor) -> Tensor:
        return model(torch.cat([x[:, :token], part[None, None], x[:, token + 1:]], 1), detached=True)[0]

    at = x[0, token]
    image, pull = torch.func.vjp(f, at)
    d = len(at)
    v = torch.randn(d, generator=generator).to(x)
    V, U, B = [v / v.norm()], [], torch.zeros(d + 1, d + 1, dtype=torch.float64)
    for step in range(min(d, len(image))):
        u = outside(torch.func.jvp(f, (at,), (V[-1],))[1], U, step and B[step - 1, step] * U[-1])
        B[step, step] = u.norm().detach()
        U.append((u / u.norm()).detach())
        v = outside(pull(U[-1])[0], V, B[step, step] * V[-1])
        B[step, step + 1] = v.norm().detach()
        if step + 1 >= k:
            left, s, _ = torch.linalg.svd(B[:step + 1, :step + 1])
            if bool((B[step, step + 1] * left[-1, :k].abs() <= tol * s[0]).all()) or step + 1 == d:
                return s[:k].detach(), step + 1
        V.append((v / v.norm()).detach())
    return torch.linalg.svdvals(B)[:k].detach(), len(U)


def outside(vector: Tensor, basis: list[Tensor], known: Tensor) -> Tensor:
    vector = vector - known
    if basis:
        Q = torch.stack(basis, 1)
        vector = vector - Q @ (Q.mT @ vector)
    return vector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("d", 256), ("layers", 8), ("heads", 8), ("kv-heads", 4), ("hidden", 688), ("tokens", 64),
                          ("rank", 10), ("peer", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tol", type=float, default=1e-3)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = Llama(given.d, given.layers, given.heads, given.kv_heads, given.hidden).eval()
    x = torch.randn(1, given.tokens, given.d)

    start = time.perf_counter()
    local = specxai.linearize(model, x, gates="frozen")
    linearised = time.perf_counter() - start
    found = specxai.tokens(local, rank=given.rank, tol=given.tol)
    ours = time.perf_counter() - start

    generator = torch.Generator().manual_seed(0)
    chosen = torch.linspace(0, given.tokens - 1, given.peer).long().tolist()
    seconds, steps, gap = 0.0, 0, 0.0
    for token in chosen:
        start = time.perf_counter()
        s, taken = lanczos(model, x, token, given.rank, given.tol, generator)
        seconds, steps = seconds + time.perf_counter() - start, steps + taken
        gap = max(gap, float((found.S[token].double() - s).abs().max() / s[0]))
    theirs = seconds / len(chosen) * given.tokens
    print(f"{found}; generic nodes {local.generic_nodes or 'none'}, agreement {local.agreement:.0e}")
    print(f"| | s | columns | worst residual, σ₁ |\n| --- | --- | --- | --- |\n"
          f"| specxai, linearisation of {linearised:.2f} s included | {ours:.2f} | {found.products} | "
          f"{found.worst_residual:.0e} |\n"
          f"| Lanczos by jvp and vjp, {len(chosen)} of {given.tokens} tokens timed | {theirs:.2f} | "
          f"{2 * steps // len(chosen) * given.tokens} | {given.tol:.0e} |")
    print(f"{theirs / ours:.1f} times as fast; singular values differ by at most {gap:.1e} σ₁")


if __name__ == "__main__":
    main()
