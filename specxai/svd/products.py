"""The operator as the solvers see it: every column counted, every step shown, the probes drawn on the CPU."""

from __future__ import annotations

import hashlib
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from specxai.native import empty
from specxai.operators import LinearOperator

__all__ = ["Counted", "ProgressBar", "gaussian", "generator_of", "scale_of"]


LARGE, PARTS = 1 << 20, 8  # numbers from which probes are drawn in parts, and how many


# Powers of two between which an operator's numbers are left as they are; others are scaled, as solvers square them.
SAFE = {torch.float32: 30, torch.float64: 100}


class Counted(LinearOperator):
    """An operator that counts the columns sent through it and moves a progress bar.

    What it multiplies is the operator times `scale`, a power of two that the first product decides, so that squares of
    its numbers neither overflow nor vanish.  Every product is a new tensor.
    """

    def __init__(self, operator: LinearOperator, bar: ProgressBar, whole: Counted | None = None) -> None:
        super().__init__(operator.shape, operator.dtype, operator.device)
        self.operator = operator
        self.bar = bar
        self.products = 0
        self.scale: float | None = None
        self._whole = whole or self  # whose columns and scale these are

    def _matmat(self, X: Tensor) -> Tensor:
        Y = self.operator.matmat(X)
        self.add(X.shape[1])
        return self._scaled(Y)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        X = self.operator.rmatmat(Y)
        self.add(Y.shape[1])
        return self._scaled(X)

    def _scaled(self, product: Tensor) -> Tensor:
        product = product if self.operator.own_products else product.clone()
        if self._whole.scale is None:
            self._whole.scale = scale_of(product)
        return product if self._whole.scale in (None, 1.0) else product.mul_(self._whole.scale)

    @property
    def spent(self) -> int:
        """Columns in all, rough ones and those of the operator that they stand for."""
        return self._whole.products

    def add(self, columns: int) -> None:
        self._whole.products += columns
        self.bar.update(columns)

    @property
    def flops(self) -> int:
        return self.operator.flops

    @property
    def own_products(self) -> bool:
        return True

    def expect(self, columns: int) -> None:
        self.operator.expect(columns)

    def narrowest_cut(self):
        return self.operator.narrowest_cut()

    def rough(self) -> Counted | None:
        cheaper = self.operator.rough()
        return None if cheaper is None else Counted(cheaper, self.bar, self._whole)


def scale_of(block: Tensor) -> float | None:
    """The power of two that brings the largest number of a block to about 1, 1.0 where it is safe as it is.

    None for a block of zeros, or one that is not finite.

    >>> scale_of(torch.tensor([[1e-25, 1e-30]])) == 2.0**83, scale_of(torch.ones(1, 1)), scale_of(torch.zeros(1, 1))
    (True, 1.0, None)
    """
    largest = float(block.abs().max()) if block.numel() else 0.0
    if not 0 < largest < math.inf:
        return None
    exponent, most = math.frexp(largest)[1], math.frexp(torch.finfo(block.dtype).max)[1] - 8
    return 1.0 if abs(exponent) <= SAFE.get(block.dtype, 30) else 2.0 ** -max(exponent, -most)


class ProgressBar:
    """A tqdm bar on stderr that shows itself after two seconds and never brings the computation down.

    shown: True or False forces it; None shows it where stderr is a terminal.
    """

    def __init__(self, shown: bool | None, text: str = "svd", unit: str = " products",
                 total: int | None = None) -> None:
        self.bar = None
        if shown is None:
            try:
                shown = sys.stderr.isatty()
            except (AttributeError, ValueError):  # no stderr, or a closed one
                shown = False
        if shown:
            from tqdm.auto import tqdm

            self._quietly(lambda: setattr(self, "bar", tqdm(desc=text, unit=unit, total=total, delay=2, leave=False)))

    def update(self, columns: int) -> None:
        if self.bar is not None:
            self._quietly(lambda: self.bar.update(columns))

    def describe(self, text: str) -> None:
        if self.bar is not None:
            self._quietly(lambda: self.bar.set_postfix_str(text, refresh=False))

    def close(self) -> None:
        if self.bar is not None:
            self._quietly(self.bar.close)

    def _quietly(self, action) -> None:
        try:
            action()
        except (OSError, ValueError, AttributeError):  # the stream went away while we worked
            self.bar = None


def generator_of(seed: int) -> torch.Generator:
    """The solvers' own stream for a seed.

    Salted: weights drawn under `torch.manual_seed(0)` would otherwise be the very numbers of the probes of seed 0, and
    a certificate rests on probes that know nothing of the operator.
    """
    salted = hashlib.sha256(f"specxai.svd probes {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(salted[:7], "big"))


def gaussian(rows: int, columns: int, generator: torch.Generator, like: LinearOperator) -> Tensor:
    """Standard normal block (rows, columns), drawn on the CPU in float32: the same on every device and dtype.

    A large one is drawn in parts, each from a stream of its own, so that threads can share them: as many parts
    whatever the number of threads.
    """
    if rows * columns < LARGE or rows < PARTS:
        block = torch.randn(rows, columns, generator=generator, dtype=torch.float32, device="cpu")
        return block.to(like.device, like.dtype)
    seeds = torch.randint(2**63 - 1, (PARTS,), generator=generator, device="cpu").tolist()
    block = empty(rows, columns)

    def draw(part: tuple[Tensor, int]) -> None:
        torch.randn(part[0].shape, generator=torch.Generator().manual_seed(part[1]), out=part[0], device="cpu")

    with ThreadPoolExecutor(min(PARTS, torch.get_num_threads())) as threads:
        list(threads.map(draw, zip(block.tensor_split(PARTS), seeds, strict=True)))
    return block.to(like.device, like.dtype)
