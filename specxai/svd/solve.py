"""`svd`: checks its arguments once, picks a solver, runs it under a progress bar."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Real

from torch import Tensor

from specxai import native
from specxai._blocks import as_integer
from specxai._fork import survive_fork
from specxai.operators import LinearOperator
from specxai.operators.later import checked_later
from specxai.precision import full_precision
from specxai.svd.auto import BLOCKS, GUARD, Blocks, Choice, choose, choose_blocks, default_basis
from specxai.svd.exact import exact
from specxai.svd.krylov import krylov
from specxai.svd.products import Counted, ProgressBar
from specxai.svd.result import SVDResult
from specxai.svd.subspace import subspace

__all__ = ["METHODS", "svd"]

METHODS = ("auto", "exact", "krylov", "subspace")
OVERSAMPLING = 16  # columns of subspace iteration beyond the rank
# Of a residual, relative to λ₁, where a rank but no tolerance is given.  A tenth of a per cent is below what a
# picture's colours tell apart, and a sum's remainder, which is computed apart, does not depend on it.
DEFAULT_TOLERANCE = 1e-3


def svd(
    operator: LinearOperator,
    rank: int | None = None,
    tol: float | None = None,
    method: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
    *,
    block_size: int | None = None,
    max_basis: int | None = None,
    max_products: int | None = None,
    start: Tensor | None = None,
) -> SVDResult:
    """Certified singular value decomposition R ≈ U diag(S) Vᵀ of an operator (m, n).

    Args:
        operator: any `specxai.operators.LinearOperator`.
        rank: how many triplets, 1 to min(m, n); None for as many as `tol` needs, or all.  Fewer come back where the
            rest are zero to rounding.
        tol: with a rank, every residual is brought to tol · λ₁; the default, 1e-3, suits pictures and sums ("exact"
            is exact anyway).  Without one, the rank grows until the bound of ‖R − U S Vᵀ‖_F is at most tol · ‖R‖_F.
            Rounding in the operator's dtype limits both.  Neither rank nor tol: all triplets, by "exact".
        method: "auto" (by counted cost), "exact", "krylov" or "subspace".
        seed: of the random probes; same seed, machine and number of threads, same result, bit for bit.
        progress: True or False forces the bar; None shows it on terminals, on runs longer than two seconds.
        block_size: columns of a Krylov block, or oversampling columns of subspace iteration; by default 4 to 64, by
            what the operator's `column_cost` makes cheapest, of subspace iteration 16.
        max_basis: columns of the Krylov basis before a restart, or, with a tolerance only, before it gives up.
        max_products: columns after which a solver gives up; the result then says `converged=False`.
        start: (n, j) right vectors to begin from, as a neighbour's V.  Speeds up, changes nothing else.

    Returns:
        `SVDResult`: U (m, k), S (k,), V (n, k), residuals, error and how they were found.  λ descending; signs are
        as the solver left them, the spectral layer fixes them.

    Raises:
        TypeError: operator is no LinearOperator.
        ValueError: an argument out of range, or an operator whose products are not finite.

    Example:
        >>> import torch, specxai
        >>> from specxai.operators import DenseOperator
        >>> R = DenseOperator(torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0])))
        >>> result = specxai.svd(R)
        >>> [round(float(value), 5) for value in result.S], result.method
        ([3.0, 2.0, 1.0], 'exact')
        >>> specxai.svd(R, rank=1).error >= 5**0.5
        True
    """
    max_basis = _checked(operator, rank, tol, method, seed, block_size, max_basis, max_products, start)
    rank, seed = None if rank is None else int(rank), int(seed)
    survive_fork()
    target = (DEFAULT_TOLERANCE if rank is not None else 0.0) if tol is None else tol
    if 0 in operator.shape:  # there is nothing to probe
        choice, blocks = Choice("exact", "an empty operator"), Blocks(block_size or 1, False, 0.0)
    elif method in ("exact", "subspace"):
        choice, blocks = Choice(method, "asked for"), Blocks(block_size or OVERSAMPLING, False, 0.0)
    elif method == "auto" and rank is None and tol is None:  # what a product costs, which takes a plan, decides nothing
        choice, blocks = Choice("exact", "every triplet asked for"), Blocks(block_size or OVERSAMPLING, False, 0.0)
    else:
        blocks = choose_blocks(operator, rank, target, block_size)
        choice = choose(operator, rank, tol, blocks) if method == "auto" else Choice(method, "asked for")
        if choice.method == "subspace":
            blocks = replace(blocks, columns=block_size or OVERSAMPLING)
    settings = {"rank": rank, "tol": target, "block_size": blocks.columns, "reason": choice.reason}
    bar = ProgressBar(progress)
    counted = Counted(operator, bar)
    try:
        with full_precision(operator.device), checked_later():
            counted.expect(_expected(choice, rank, counted.shape))
            result = _solve(counted, choice, blocks, tol, max_basis, max_products, start, settings, seed)
            operator.ensure_current()  # products ask for the least; what they may have missed shows here
            return _unscaled(result, counted.scale or 1.0)
    finally:
        bar.close()
        native.release_idle()


def _expected(choice: Choice, rank: int | None, shape: tuple[int, int]) -> int:
    """About how many columns will be multiplied, at the least: of trained nets, whose spectra are steep."""
    if choice.method == "exact" or rank is None:
        return min(shape)
    return min(*shape, 6 * (rank + GUARD))


def _solve(counted, choice, blocks, tol, max_basis, max_products, start, settings, seed) -> SVDResult:
    rank = settings["rank"]
    if choice.method == "exact":
        return exact(counted, rank, tol, seed=seed, settings={**settings, "tol": tol})
    # All triplets by iteration: the basis grows until the range is exhausted.
    common = {"max_products": max_products or 8 * min(counted.shape) + 1000, "seed": seed, "start": start}
    if choice.method == "subspace":
        return subspace(counted, rank, settings["tol"], oversampling=blocks.columns, settings=settings, **common)
    basis = default_basis(counted, rank, blocks.columns) if max_basis is None and rank is not None else max_basis
    return krylov(counted, rank, settings["tol"], block=blocks.columns, rough=blocks.rough, max_basis=basis,
                  settings={**settings, "max_basis": basis, "rough": blocks.rough}, **common)


def _unscaled(result: SVDResult, scale: float) -> SVDResult:
    """The operator's own decomposition, from that of the operator times `scale`."""
    if scale == 1:
        return result
    numbers = ("S", "residuals", "error", "estimate", "norm", "floor")
    return replace(result, **{name: getattr(result, name) / scale for name in numbers})


def check_options(tol, method, seed) -> None:
    """Raise ValueError for what no operator can be decomposed with."""
    if tol is not None and not (isinstance(tol, Real) and math.isfinite(tol) and 0 <= tol < 1):
        raise ValueError(f"tol is relative and must lie in [0, 1), or be None; got {tol!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if as_integer(seed) is None or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer in [0, 2**63); got {seed!r}")


def _checked(
    operator, rank, tol, method, seed, block_size, max_basis, max_products, start
) -> int | None:
    """`max_basis`, raised to what a restart needs; ValueError and TypeError for what is out of range."""
    if not isinstance(operator, LinearOperator):
        raise TypeError(
            f"svd needs a specxai.operators.LinearOperator, got {type(operator).__name__}; "
            "wrap a matrix as DenseOperator(matrix)"
        )
    if operator.dtype.itemsize < 4:
        raise ValueError(f"svd works in float32 or float64, got {operator.dtype}; cast the model with .float()")
    if rank is not None and (as_integer(rank) is None or rank < 1):
        raise ValueError(f"rank must be a positive integer, or None for all; got {rank!r}")
    if rank is not None and 0 < min(operator.shape) < rank:
        raise ValueError(
            f"rank {rank} is out of range for an operator of shape {operator.shape}: it has {min(operator.shape)} "
            "singular values; give at most that, or None for all"
        )
    check_options(tol, method, seed)
    for name, value in (("block_size", block_size), ("max_basis", max_basis), ("max_products", max_products)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, or None for the default; got {value!r}")
    if start is not None and (start.ndim != 2 or start.shape[0] != operator.shape[1]):
        raise ValueError(f"start must have shape ({operator.shape[1]}, j), got {tuple(start.shape)}")
    if max_basis is not None and rank is not None:
        # A restart must leave room for the wanted pairs, a block of spares and a block of news.
        max_basis = max(max_basis, rank + 3 * (block_size or max(BLOCKS)))
    return max_basis
