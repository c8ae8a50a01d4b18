"""What run.sh is expected to take on an H100: counted work over its stated rates, three times that for safety.

Until a card has been asked, this is what there is: operations of every layer, live or not, at the datasheet's rates;
kernels to compile, at the most that one took on the CPU; and what the host does.  It says whether everything is
measured before the limits cut it short.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from streams import GROUPS
from torch.utils.flop_counter import FlopCounterMode

from specxai._vision import import_vision
from specxai.backends.cuda.tuned import MOST, RUNS
from specxai.bench.cases import COLUMNS, POWER_ITERATIONS, RANK
from specxai.kernels.tile import PANELS, tiles_for
from specxai.svd.auto import A_COLUMN, A_TRIPLET, FIRST
from specxai.svd.certify import HELD_OUT

# An H100 SXM's datasheet: operations, dense, and bytes a second.
RATES = {"fp32": 67e12, "tf32": 495e12, "bf16": 989e12, "fp64": 67e12}
BYTES = 3.35e12
SAFETY = 3
COMPILE = 0.8  # seconds for a specialisation of a Triton kernel: the most of those compiled without a card
START = 12.0  # seconds until a process has torch, a context and its tests
HOST = 2.0  # seconds for capture, plan and tables of a new input of a large net: the most on the CPU is 1.4
MAKE = 4.0  # seconds to draw and calibrate a large net on the CPU
BUILD = 30.0  # five times the longest file on one core of a CPU
SANITIZER = 60.0  # its limit, in place of an estimate
# Specialisations of one kernel at one width of blocks: written or added, whole sums or parts of them.
VARIANTS = 4
NETS, MORE = ("vgg11_bn", "tf_efficientnet_lite0"), ("resnet50", "densenet121")  # of the two calls
# One digit takes 6 ms on two cores of a CPU, a thousand together 2 s: for them no rate of the card counts.
DIGITS = [20 * 6e-3, 2.0]
TRIED = {"resnet50": 54, "vgg11_bn": 11}  # nets whose ways are tried, and their layers
WAITED = 2e-3  # seconds that a timed run waits for the host's launches, and the host for it
PRECISIONS = 6
TILES = 3  # that a gather-GEMM is tried with: the chosen one and others


@dataclass(frozen=True)
class Tests:
    """Tests of one process; the processes run at the same time, as nothing in them is timed.

    chosen   pytest's -k
    count    how many there are, which a test compares with what pytest collects
    kernels  specialisations that each compiles
    """

    file: str
    chosen: str
    count: int
    kernels: int

    @property
    def seconds(self) -> float:
        return START + COMPILE * self.count * self.kernels


TRITON, MAPS = "tests/native/test_triton_gpu.py", "tests/core/test_cuda.py"
TESTS = (
    Tests("tests/native/test_cuda_gpu.py", "", 53, 0),
    *(Tests(TRITON, f"gather and {size} and {flow}", 35, 1) for size in ("small", "wide")
      for flow in ("inputs", "outputs")),
    Tests(TRITON, "packed and bf16", 12, 2),
    Tests(TRITON, "(packed and not bf16) or depthwise", 20, 2),
    Tests(TRITON, "group_rows or scaled_weights", 13, 2),
    Tests(TRITON, "attention", 12, 3),
    Tests(MAPS, "same_map", 12, 2),
    Tests(MAPS, "not same_map", 23, 2),
    Tests("tests/core/test_cuda_tuned.py", "", 1, 16),
    Tests("tests/core/test_cuda_whole.py", "", 7, 5),
)


@dataclass(frozen=True)
class Step:
    """A part of the run: seconds, and what they are made of."""

    name: str
    seconds: float
    why: str


def steps(passes: tuple[float, int], calls: tuple[float, int]) -> Iterator[Step]:
    """In the order of run.sh.

    passes, calls   (seconds, most runs) that a pass, and a whole call, are timed for
    """
    yield Step("CUDA kernels", BUILD, "all files at the same time")
    slowest = max(TESTS, key=lambda tests: tests.seconds)
    yield Step("tests and sanitizer", max(SANITIZER, slowest.seconds),
               f"at the same time; the longest compiles {slowest.count * slowest.kernels} specialisations")
    yield Step("start", START, "a process")
    yield Step("roofs", sum(_timed(work, 0.5, 30) for work in _roofs()), "a copy and three products")
    # What one net has compiled is there for the next: each width of panels, three widths of blocks, seeking and not.
    kinds = 2 * len(PANELS) + 3  # gathered inputs or outputs; packed, depthwise, sums
    compiled = kinds * VARIANTS * 2
    yield Step("compilation for networks", COMPILE * compiled, f"{compiled} specialisations")
    for name in NETS:
        yield Step(name, MAKE + _net(gflop(name) * 1e9, passes, calls), f"{gflop(name):.3g} GFLOP a column, dense")
    yield Step("questions", COMPILE * 5 + sum(_timed(work, 0.3, 10) for work in _questions()),
               "5 specialisations, an MLP, bases, digits")
    yield Step("decoders", 2 * COMPILE * kinds + _decoders(), "a billion weights, 2,048 rows, 128 tokens, then 427")


def more_steps(passes: tuple[float, int], calls: tuple[float, int]) -> Iterator[Step]:
    """Of `measure.py --more`."""
    yield Step("start", START, "a process")
    yield Step("roofs", sum(_timed(work, 0.5, 30) for work in _roofs()), "a copy and three products")
    compiled = (2 * len(PANELS) + 3) * VARIANTS * 2
    yield Step("compilation for networks", COMPILE * compiled, f"{compiled} specialisations")
    for name in MORE:
        yield Step(name, MAKE + _net(gflop(name) * 1e9, passes, calls), f"{gflop(name):.3g} GFLOP a column, dense")
    yield Step("kernels", COMPILE * PRECISIONS * (TILES + 2) + 0.3 * PRECISIONS * (TILES + 2),
               f"{PRECISIONS * (TILES + 2)} specialisations")
    yield Step("streams", (COMPILE + 0.3) * (len(GROUPS) + 1), f"{len(GROUPS) + 1} specialisations")
    # Ways are tried at one width and in one precision; those by size are compiled by then.
    tiles = {tile for outputs in PANELS for tile in tiles_for(outputs, COLUMNS, "tf32x3")}
    others = 3 * (len(tiles) - len(PANELS)) * VARIANTS
    yield Step("compilation of other ways", COMPILE * others, f"{others} specialisations, of three kernels")
    for name, layers in TRIED.items():
        column = SAFETY * 3 * gflop(name) * 1e9 / RATES["tf32"]
        trials = 2 * MOST * (1 + RUNS) * (COLUMNS * column + layers * WAITED)
        tables = 2 * 2 * HOST  # of two operators, and once more for the ways that the counts did not choose
        yield Step(f"ways of {name}", MAKE + tables + trials + 4 * _timed(COLUMNS * column, *passes),
                   f"{layers} layers, each way, {MOST} times {1 + RUNS} runs")


def gflop(name: str) -> float:
    """Of one column through all of a net, a multiply-add counted as two."""
    models = import_vision("torchvision.models")
    with torch.device("meta"):
        net = getattr(models, name)() if hasattr(models, name) else import_vision("timm").create_model(name)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net.eval()(torch.empty(1, 3, 224, 224))
    return counter.get_total_flops() / 1e9


def _net(flops: float, passes: tuple[float, int], calls: tuple[float, int]) -> float:
    """Of four peers: a pass each way, equal products and the default call."""
    equal = HELD_OUT + COLUMNS * (1 + 2 * (1 + POWER_ITERATIONS))
    default = FIRST + A_TRIPLET * RANK + A_COLUMN * COLUMNS + 4 * RANK
    total = 0.0
    # torch.func repeats the forward pass beside each tangent; float32-grade is three products on tensor cores.
    for rate, times, host in ((RATES["fp32"], 2, 0.0), (RATES["tf32"], 2, 0.0), (RATES["fp32"], 1, HOST),
                              (RATES["tf32"] / 3, 1, HOST)):
        column = SAFETY * times * flops / rate
        total += host  # the operator's own
        total += 2 * _timed(COLUMNS * column, *passes)
        for columns, fixed in ((equal, 0.3), (default, 0.3 + host)):
            call = columns * column + fixed
            total += call + _timed(call, *calls, warm=False)
    return total


def _roofs() -> list[float]:
    n = 8192
    return [SAFETY * (4 << 30) / BYTES, *(SAFETY * 2 * n**3 / RATES[name] for name in ("fp32", "tf32", "bf16"))]


def _questions() -> list[float]:
    mlp = 2 * 8 * 8192**2 * 256
    rates = [RATES["fp32"], RATES["tf32"], RATES["bf16"]] * 2 + [RATES["bf16"] / 3]
    tall = 150_528 * 64 * 4
    bases = [SAFETY * 8 * tall / BYTES, SAFETY * 8 * tall / BYTES, *[SAFETY * 4 * 150_528 * 500 * 4 / BYTES] * 2]
    return [SAFETY * mlp / rate for rate in rates] + bases + DIGITS


def _decoders() -> float:
    weights, d, some, tokens = 1.0e9, 2048, 256, 128
    row = SAFETY * 2 * weights * tokens / RATES["bf16"]
    # Three widths of the loop with some rows; the best with all; ours.
    lens = 3 * _timed(some * row, 0.5, 3) + d * row + _timed(d * row + HOST, 1.0, 3) + 3 * d * row + HOST
    # Every adjoint product through all tokens, in float32 out of six of bfloat16 each; then a thin SVD of each token.
    detached = SAFETY * 6 * 2 * weights * 427 * d / RATES["bf16"] + SAFETY * 4 * 427 * d**2 * 64 / RATES["fp32"]
    return lens + detached + 3 * MAKE


def _timed(seconds: float, limit: float, most: int, warm: bool = True) -> float:
    """What `Clock.of` takes for work of so many seconds."""
    return warm * seconds + max(seconds, min(most * seconds, limit + seconds))


if __name__ == "__main__":
    for tests in TESTS:
        print(tests.file, tests.chosen, sep="\t")
