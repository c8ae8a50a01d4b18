"""The Jacobian lens of one prompt: the reference's loop at its best batch against `specxai.lens`, in one run.

The model has GPT-2-small's shape and random weights: `transformers`' own where it is installed, else its twin in plain
torch.  Both sides do all of a prompt's rows, in turns, block by block; each side's forward pass, capture and
linearisation are in its time.  Peaks of memory are of processes of their own.

    python benchmarks/lens.py                                            # several minutes
    python benchmarks/lens.py --tokens 64 --blocks 4 --rows 64           # proves that it works
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from functools import partial

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

import specxai
from clock import Clock
from specxai.bench.fresh import measured
from specxai.lens.decoder import Decoder
from specxai.lens.linear import Linearised, Linearizer
from specxai.lens.sweep import group_columns, rough_of, sweep, unit_rows
from specxai.zoo.gpt import GPT, Block

VOCABULARY = 50257
BATCHES = (8, 16, 32, 64)


class Closed(Block):
    """With ReLUs, as OPT has, of which `close` closes a share at one prompt."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.ln_1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(self.up(self.ln_2(x)).relu())


@torch.no_grad()
def close(model: GPT, ids: Tensor, share: float) -> None:
    """This share of the ReLUs of every block, by their biases."""
    for block in model.blocks:
        found: list[Tensor] = []
        handle = block.up.register_forward_hook(lambda module, args, output, found=found: found.append(output))
        model(ids)
        handle.remove()
        block.up.bias -= found[0].flatten()[:1 << 23].quantile(share)


class Loop:
    """The reference: the prompt replicated, one forward pass, the graph retained over all backward passes."""

    def __init__(self, decoder: Decoder, ids: Tensor, batch: int, skip_first: int) -> None:
        self.batch, self.valid, kept = batch, slice(skip_first, ids.shape[1] - 1), {}

        def keeping(layer: int):
            def hook(module: nn.Module, inputs: tuple, output):
                stream = output if isinstance(output, Tensor) else output[0]
                kept[layer] = stream.requires_grad_() if layer == 0 else stream

            return hook

        handles = [block.register_forward_hook(keeping(layer)) for layer, block in enumerate(decoder.blocks)]
        decoder.model(ids.expand(batch, -1), **decoder.kwargs)
        for handle in handles:
            handle.remove()
        self.sources, self.target = [kept[layer] for layer in range(len(decoder) - 1)], kept[len(decoder) - 1]

    def rows(self, start: int, stop: int) -> Tensor:
        """(layers, rows, d)."""
        cotangent = torch.zeros_like(self.target)
        for number in range(stop - start):
            cotangent[number, self.valid, start + number] = 1
        grads = torch.autograd.grad(self.target, self.sources, cotangent, retain_graph=True)
        return torch.stack([grad[:stop - start, self.valid].mean(1) for grad in grads])


class Ours:
    """One linearisation, adjoint sweeps."""

    def __init__(self, found: Linearised, rough: bool) -> None:
        self.found, self.batch = found, group_columns(found)
        self.rough = rough_of(found)[0] if rough else False

    def rows(self, start: int, stop: int) -> Tensor:
        """(layers, rows, d)."""
        return sweep(self.found, unit_rows(self.found, start, stop), self.rough)


def model_of(tokens: int, blocks: int, width: int, plain: bool, dead: float = 0.0) -> tuple[Decoder, Tensor, str]:
    """(a decoder without gradients of weights, token ids (1, T), whose model it is)."""
    torch.manual_seed(0)
    try:
        if plain or dead:
            raise ImportError
        import transformers

        config = transformers.GPT2Config(n_embd=width, n_layer=blocks, n_head=width // 64)
        model, whose = transformers.GPT2LMHeadModel(config), f"transformers {transformers.__version__}"
    except ImportError:
        model, whose = GPT(VOCABULARY, width, width // 64, blocks, max(tokens, 128)), "plain torch"
    ids = torch.randint(VOCABULARY, (1, tokens))
    if dead:
        model.blocks = nn.ModuleList(Closed(width, width // 64) for _ in range(blocks))
    model = model.eval().requires_grad_(False)
    if dead:
        close(model, ids, dead)
        whose += f", {dead:.0%} of its ReLUs closed"
    return Decoder(model), ids, whose


def clocked(work):
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def all_rows(side: Loop | Ours, start: int, stop: int) -> list[Tensor]:
    """Block by block."""
    return [side.rows(first, min(first + side.batch, stop)) for first in range(start, stop, side.batch)]


def row_seconds(loop: Loop) -> float:
    """Of the fastest of three passes."""
    return min(clocked(lambda: loop.rows(0, loop.batch))[1] for _ in range(3)) / loop.batch


def further_prompt(decoder: Decoder, ids: Tensor, times: int = 7) -> float:
    """How many forward passes of the model the linearisation at another prompt of a captured length takes, in time of
    the process: the median of turns.
    """
    captured, ratios = specxai.capture(decoder.model, ids, verify=False), []
    for turn in range(times + 1):
        other = ids.roll(turn + 1, 1)
        with torch.no_grad(), Clock() as forward:
            decoder.model(other, **decoder.kwargs)
        with Clock() as ours:
            specxai.linearize(captured, other, verify=False)
        ratios.append(ours.cpu / forward.cpu)
    return statistics.median(ratios[1:])


def peak(side: str, batch: int, tokens: int, blocks: int, width: int, plain: bool, skip_first: int) -> float:
    """MB beside the model of two blocks of rows, in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--side", side, "--batch", str(batch), "--tokens", str(tokens),
                           "--blocks", str(blocks), "--width", str(width), "--skip-first", str(skip_first),
                           *(["--plain"] if plain else [])], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["peak_mb"]


def main(tokens: int = 128, blocks: int = 12, width: int = 768, rows: int | None = None, skip_first: int = 16,
         batches: tuple[int, ...] = BATCHES, threads: int = 2, plain: bool = False, memory: bool = True,
         dead: float = 0.0, bfloat16: bool = False, side: str = "", batch: int = 0) -> None:
    """Print the ratios.

    Args:
        tokens: of the prompt.
        blocks: of the model; all but the last are source layers.
        width: of the residual stream.
        rows: of the lens; all by default, fewer to shrink.
        skip_first: positions that do not count.
        batches: of the reference's passes that are tried; the fastest is taken.
        threads: of torch.
        plain: the twin in plain torch, even where transformers is installed.
        memory: peaks of both sides too.
        dead: share of the feed-forward units that are ReLUs and closed, in the twin in plain torch; 0 for GELU.
        bfloat16: the model is in it, and so is the loop; rough products are then what a fit takes by default, and
            errors are those from float32 products.
        side: for a fresh process: loop or ours.
        batch: for a fresh process.
    """
    torch.set_num_threads(threads)
    decoder, ids, whose = model_of(tokens, blocks, width, plain, dead)
    rows = width if rows is None else min(rows, width)
    if bfloat16:
        decoder, whose = Decoder(decoder.model.bfloat16()), f"{whose}, bfloat16"
        memory = False  # of float32 processes

    def ours(rough: bool = False) -> Ours:
        return Ours(Linearizer(decoder, list(range(blocks - 1)), skip_first).at(ids), rough)

    if side:
        def work():
            made = Loop(decoder, ids, batch, skip_first) if side == "loop" else ours()
            for _ in range(2):
                made.rows(0, made.batch)

        print(json.dumps(measured(work)))
        return
    print(f"{whose}, {blocks} blocks, d = {width}, {tokens} tokens, {rows} rows of {blocks - 1} layers, "
          f"{threads} threads, torch {torch.__version__}")
    print(f"a further prompt is linearised in {further_prompt(decoder, ids):.2f} forward passes")
    speeds = {}
    for size in batches:
        speeds[size] = row_seconds(Loop(decoder, ids, size, skip_first))
        print(f"  reference, batch {size}: {1e3 * speeds[size]:.1f} ms a row", flush=True)
    best = min(speeds, key=speeds.get)
    sides, spent = {}, {}
    makers = {"reference": lambda: Loop(decoder, ids, best, skip_first), "specxai": ours,
              "specxai rough": lambda: ours(rough=True)}
    for name, make in makers.items():
        sides[name], spent[name] = clocked(make)
    found: dict[str, list[Tensor]] = {name: [] for name in sides}
    step = max(made.batch for made in sides.values())
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        for name, made in sides.items():
            parts, seconds = clocked(partial(all_rows, made, start, stop))
            found[name] += parts
            spent[name] += seconds
    wanted = torch.cat(found["specxai" if bfloat16 else "reference"], 1).float()
    for name in sides:
        got = torch.cat(found[name], 1)
        error = ((got - wanted).norm(dim=(1, 2)) / wanted.norm(dim=(1, 2))).max()
        print(f"{name:<17} {spent[name]:8.2f} s, ratio {spent['reference'] / spent[name]:.2f}, rows at once "
              f"{sides[name].batch}, error {float(error):.1e}")
    if memory:
        shape = tokens, blocks, width, plain, skip_first
        reference, own = peak("loop", best, *shape), peak("ours", 0, *shape)
        print(f"peak beside the model: reference {reference:.0f} MB, specxai {own:.0f} MB, ratio {own / reference:.2f}")


if __name__ == "__main__":
    tyro.cli(main)
