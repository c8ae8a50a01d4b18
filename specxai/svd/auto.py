"""Which solver: by counted cost, in floating-point operations, and by the memory its bases need."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specxai.operators import LinearOperator
from specxai.svd.exact import SAMPLED, useful_cut
from specxai.svd.orth import small_eigh_cost, small_svd_cost

__all__ = ["Choice", "choose", "default_basis", "default_block"]

MEMORY = 4 << 30  # bytes of bases a solver may hold before "auto" looks for a smaller one
STEP = 10**8  # operations of a product below which what a Krylov step costs besides outweighs it
GUESSED_DEPTH = 6  # bases of about this many times the rank are usual for residuals of 1e-5 λ₁
GUESSED_RANK = 256  # where only a tolerance is given, nothing is known yet


@dataclass(frozen=True)
class Choice:
    method: str
    reason: str


def default_block(operator: LinearOperator, rank: int | None) -> int:
    """Wide enough for products to be fast, and else narrow: depth does more for a column than width."""
    if operator.device.type == "cuda":
        return 64
    if rank is None or rank > 16:
        return 32
    few = operator.efficient_columns
    return few if few * operator.flops >= STEP else 16


def default_basis(rank: int | None, block: int) -> int:
    """Columns of the Krylov basis before a thick restart."""
    return max(512, 4 * ((rank or 0) + block))


def _orthogonalisation(operator: LinearOperator, q: int) -> int:
    """Two Gram-Schmidt passes on both sides, and the small SVD."""
    return 8 * sum(operator.shape) * q**2 + small_svd_cost(q)


def _exact_cost(operator: LinearOperator, rank: int | None) -> tuple[int, int, int]:
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
    return (width + 2 * min(kept, SAMPLED) + SAMPLED) * operator.flops + algebra, held, width


def _krylov_cost(operator: LinearOperator, rank: int | None, block: int) -> tuple[int, int]:
    wanted = rank if rank is not None else GUESSED_RANK
    q = min(GUESSED_DEPTH * (wanted + block), *operator.shape)
    operations = (2 * q + 2 * wanted + 32) * operator.flops + _orthogonalisation(operator, q)
    return operations, 2 * sum(operator.shape) * q * operator.dtype.itemsize


def choose(operator: LinearOperator, rank: int | None, tol: float | None, block: int) -> Choice:
    """The cheapest solver that fits; exact where neither rank nor tolerance is given."""
    operations, held, width = _exact_cost(operator, rank)
    what = f"{width}-wide cut"
    if rank is None and tol is None:
        return Choice("exact", f"every triplet asked for; {what}")
    other, basis = _krylov_cost(operator, rank, block)
    costs = f"exact {operations:.2g} FLOPs through a {what}, Krylov about {other:.2g}"
    if operations <= other and held <= MEMORY:
        return Choice("exact", costs)
    if basis > MEMORY and rank is not None:
        return Choice("subspace", f"{costs}; a Krylov basis of {basis / 2**30:.1f} GiB is too large")
    return Choice("krylov", costs)
