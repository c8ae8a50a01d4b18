"""Which solver: by counted cost, in floating-point operations, and by the memory its bases need."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specxai.operators import LinearOperator
from specxai.svd.exact import SAMPLED, useful_cut
from specxai.svd.orth import small_eigh_cost, small_svd_cost

__all__ = ["GUARD", "Blocks", "Choice", "choose", "choose_blocks", "default_basis"]

MEMORY = 4 << 30  # bytes of bases a solver may hold before "auto" looks for a smaller one
BLOCKS = (4, 8, 16, 32, 64)
STEP = 10**8  # operations that weigh as much as what a step of Krylov costs besides its products
GUESSED_RANK = 256  # where only a tolerance is given, nothing is known yet
# Columns that block Krylov takes for residuals of 1e-3 λ₁ on the flat spectra of random networks, by counts at ranks 10
# and 50 and blocks of 1 to 64: FIRST + A_TRIPLET · rank + A_COLUMN · block.  Steeper spectra need fewer.
FIRST, A_TRIPLET, A_COLUMN = 250, 13, 30
# Tolerance from which on rough products, which round to about 2e-3, find what one block in full precision can finish:
# the leading Ritz vectors, GUARD more than are wanted.
ROUGH_TOLERANCE, GUARD = 2.0**-12, 14


@dataclass(frozen=True)
class Choice:
    method: str
    reason: str


@dataclass(frozen=True)
class Blocks:
    """How block Krylov runs: `columns` a block, from rough products first or not, and the operations that it is
    expected to take, as many as at the peak take the same time."""

    columns: int
    rough: bool
    cost: float


def choose_blocks(operator: LinearOperator, rank: int | None, tol: float, columns: int | None = None) -> Blocks:
    """The blocks that cost least: narrow ones need fewer columns, wide ones run at a higher rate.

    tol       of a residual, relative to λ₁
    columns   of a block, where they are given
    """
    if columns is None and operator.device.type == "cuda":
        columns = 64
    if columns is None and rank is None:
        columns = 32
    widths = BLOCKS if columns is None else (columns,)
    found = [Blocks(width, False, _cost(operator, rank, width)) for width in widths]
    rough = operator.rough() if rank is not None and tol >= ROUGH_TOLERANCE else None
    if rough is not None:
        finish = 3 * (rank + GUARD) * operator.flops * operator.column_cost(rank + GUARD)
        found += [Blocks(width, True, finish + _cost(rough, rank, width)) for width in widths if width >= 16]
    return min(found, key=lambda blocks: blocks.cost)


def _columns(rank: int | None, block: int) -> int:
    return FIRST + A_TRIPLET * (GUESSED_RANK if rank is None else rank) + A_COLUMN * block


def _cost(operator: LinearOperator, rank: int | None, block: int) -> float:
    """Of products, a step's overhead, and orthogonal bases; no more columns than the whole range has."""
    columns = min(_columns(rank, block), 2 * min(operator.shape))
    steps = columns * operator.flops * operator.column_cost(block) + columns / block * STEP
    return steps + _orthogonalisation(operator, columns // 2, block)


def default_basis(operator: LinearOperator, rank: int | None, block: int) -> int:
    """Columns of the Krylov basis before a thick restart: twice what is expected, where memory holds that."""
    fits = MEMORY // max(1, sum(operator.shape) * operator.dtype.itemsize)
    return max(512, min(_columns(rank, block), fits))


def _orthogonalisation(operator: LinearOperator, q: int, block: int) -> float:
    """Gram-Schmidt on both sides, whose rate falls with narrow blocks, and the small SVD."""
    return 4 * sum(operator.shape) * q**2 * (1 + 32 / block) + small_svd_cost(q)


def _exact_cost(operator: LinearOperator, rank: int | None) -> tuple[float, int, int]:
    """(operations, bytes, width)."""
    m, n = operator.shape
    cut = useful_cut(operator)
    width = min(m, n) if cut is None else cut.width
    item = 8 if operator.dtype.itemsize == 8 else 4
    held = (m + n) * width * item + 3 * 8 * width**2
    rows = max(m, n) if cut is None else m + n
    kept = min(rank if rank is not None else width, width)
    if operator.dtype is torch.float32:  # a Gram matrix; the kept vectors, their basis and residuals
        algebra = rows * (width**2 + 6 * width * kept + 6 * kept**2) + small_eigh_cost(width)
    else:
        algebra = 8 * rows * width**2 + small_svd_cost(width)
    columns = width + 2 * min(kept, SAMPLED) + SAMPLED
    return columns * operator.flops * operator.column_cost(64) + algebra, held, width


def choose(operator: LinearOperator, rank: int | None, tol: float | None, blocks: Blocks) -> Choice:
    """The cheapest solver that fits; exact where neither rank nor tolerance is given."""
    operations, held, width = _exact_cost(operator, rank)
    what = f"{width}-wide cut"
    if rank is None and tol is None:
        return Choice("exact", f"every triplet asked for; {what}")
    q = min(_columns(rank, blocks.columns) // 2, *operator.shape)
    basis = sum(operator.shape) * q * operator.dtype.itemsize
    costs = f"exact {operations:.2g} FLOPs through a {what}, Krylov about {blocks.cost:.2g}"
    if operations <= blocks.cost and held <= MEMORY:
        return Choice("exact", costs)
    if basis > MEMORY and rank is not None:
        return Choice("subspace", f"{costs}; a Krylov basis of {basis / 2**30:.1f} GiB is too large")
    return Choice("krylov", costs)
