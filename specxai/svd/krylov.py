"""Block Krylov: Golub-Kahan bidiagonalisation with blocks and full reorthogonalisation.

The basis spans [RΩ, (RRᵀ)RΩ, …, (RRᵀ)^d RΩ].  For a gap-free guarantee d ~ log n / √ε is enough, where subspace
iteration needs log n / ε (Musco & Musco 2015, arXiv 1504.05477, thm 1; Tropp & Webber 2023, arXiv 2306.12418).  Both
bases are orthonormalised at every step, so the powers are never formed and small singular values are not squared away.
The depth grows until the certificates hold; past `max_basis` a thick restart keeps the leading Ritz pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.svd.certify import FLOORS, HeldOut, rounding_floor
from specxai.svd.orth import extend, small_svd_cost
from specxai.svd.products import Counted, gaussian, generator_of
from specxai.svd.result import SVDResult
from specxai.svd.space import Space

__all__ = ["krylov"]

# The projected SVD is repeated when the products since cost this many times as much, and at the latest when the basis
# has grown by this factor.
CHECK_WORTH, CHECK_GROWTH = 4, 1.2
# Share of the full basis that a thick restart keeps: more than the wanted pairs, since their neighbours speed them up.
KEPT = 0.4


def krylov(
    operator: Counted,
    rank: int | None,
    tol: float,
    *,
    block: int,
    max_basis: int | None,
    max_products: int,
    seed: int,
    start: Tensor | None = None,
    settings: dict,
) -> SVDResult:
    """Leading triplets by block Krylov.

    With a rank: until each of its residuals is certain to be ≤ tol λ₁, or is near the floor.  Without: until the error
    bound is ≤ tol ‖R‖_F; the basis is then not restarted.  `start` (n, j) replaces the first j probes (a warm start).
    """
    generator = generator_of(seed)
    held = HeldOut(operator, generator)
    floor = rounding_floor(held.norm, operator.dtype)
    complete_at = min(operator.shape)
    space = Space(operator)
    new = _fresh(space, block, generator, floor, start)
    k, converged, next_check, depth = rank or 0, False, 0, 0
    while True:
        if new.shape[1] == 0:  # the Krylov space is invariant: a repeated singular value may still hide outside
            new = _fresh(space, block, generator, floor)
        complete = new.shape[1] == 0 or space.size >= complete_at
        if complete:
            k = _truncate(space, rank, tol, 0.0)
            converged = True
            break
        depth += 1
        right = space.add(new[:, : complete_at - space.size], floor)
        new, _, C = extend(space.Q, operator.matmat(right), floor)
        if space.size >= complete_at or new.shape[1] == 0:
            continue
        full = max_basis is not None and space.size + new.shape[1] > max_basis
        restart = full and rank is not None
        spent = operator.products >= max_products or (full and rank is None)
        if space.size < next_check and not (spent or restart):
            continue
        columns = CHECK_WORTH * small_svd_cost(space.size) / (2 * max(1, operator.flops))
        next_check = space.size + max(1, min(int(columns), int((CHECK_GROWTH - 1) * space.size)))
        X, s, _ = space.ritz()
        if rank is not None:
            # (I − QQᵀ)RP is zero but for the newest columns of P, where it is `new` C.
            residual = torch.linalg.norm(C @ X[X.shape[0] - right.shape[1] :, :rank], dim=0)
            worst = float(residual.max()) if residual.numel() else float("inf")
            operator.bar.describe(f"basis {space.size}, residual {worst / max(float(s[0]), 1e-300):.1e} λ₁")
            converged = space.size > rank and worst <= max(tol * float(s[0]) - 2 * floor, floor)
        else:
            unseen = held.factor * held.unseen(space.Q)
            operator.bar.describe(f"basis {space.size}, unseen {unseen / max(held.norm, 1e-300):.1e} ‖R‖")
            found = space.truncation(s, tol, unseen + 2 * FLOORS * floor)
            converged, k = found is not None, len(s) if found is None else found
        if converged or spent:
            break
        if restart:
            space.compress(min(max(rank + block, int(KEPT * max_basis)), space.size - block))
            next_check = (space.size + max_basis) // 2
    return space.result(
        held, floor, k, method="krylov", seed=seed, converged=converged, settings={**settings, "depth": depth}
    )


def _fresh(space: Space, block: int, generator: torch.Generator, floor: float, start: Tensor | None = None) -> Tensor:
    """New left directions from the operator's action on random vectors; none where the range is exhausted."""
    operator = space.operator
    probes = gaussian(operator.shape[1], min(block, *operator.shape), generator, operator)
    if start is not None:
        warm = start[:, : probes.shape[1]].to(probes)
        probes = torch.cat([warm, probes[:, warm.shape[1] :]], 1)
    # A probe has norm √n, so what rounding leaves of an exhausted range is that much larger than the floor.
    return extend(space.Q, operator.matmat(probes / operator.shape[1] ** 0.5), floor)[0]


def _truncate(space: Space, rank: int | None, tol: float, unseen: float) -> int:
    if rank is not None:
        return rank
    _, s, _ = space.ritz()
    found = space.truncation(s, tol, unseen)
    return len(s) if found is None else found
