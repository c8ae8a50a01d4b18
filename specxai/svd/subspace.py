"""Randomised subspace iteration with a dynamic shift, for when the basis must stay small.

Halko, Martinsson & Tropp (2011, arXiv 0909.4061, alg. 4.4) iterate Q ← orth(RRᵀQ).  dashSVD (Feng, Yu & Xie 2024,
arXiv 2404.09276) iterates with RRᵀ − αI instead, where α follows half the smallest Ritz value from below: the wanted
values decay more slowly than the unwanted, at no cost.  Only rank + oversampling columns are ever held.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.svd.certify import FLOORS, HeldOut, leave_one_out, rounding_floor
from specxai.svd.orth import difference_norms, range_basis, small_svd, tall_qr
from specxai.svd.products import Counted, gaussian, generator_of
from specxai.svd.result import SVDResult
from specxai.svd.space import Space

__all__ = ["subspace"]

FIRST_RANK = 16  # columns to begin with where only a tolerance is given; doubled until it holds
ROUGH = 2**-6  # of λ₁: residuals below it tell more of rough products than of the subspace
PROGRESS = 0.7  # rough iterations go on while each lowers the worst residual to this part


def subspace(
    operator: Counted,
    rank: int | None,
    tol: float,
    *,
    oversampling: int,
    max_products: int,
    seed: int,
    start: Tensor | None = None,
    settings: dict,
) -> SVDResult:
    """Leading triplets by shifted subspace iteration; same stopping rules as `krylov`."""
    generator = generator_of(seed)
    held = HeldOut(operator, generator)
    floor = rounding_floor(held.norm, operator.dtype)
    smaller = min(operator.shape)
    width = min(smaller, (rank if rank is not None else FIRST_RANK) + oversampling)
    while True:
        space, converged, iterations = _iterate(operator, width, rank, tol, held, floor, generator, start, max_products)
        _, s, _ = space.ritz()
        k = rank
        exhausted = space.size < width or width == smaller
        if rank is None:
            found = space.truncation(s, tol, held.factor * held.unseen(space.Q) + 2 * FLOORS * floor)
            converged = found is not None or exhausted
            k = len(s) if found is None else found
        if rank is not None or converged or operator.products >= max_products:
            break
        width = min(smaller, 2 * width)
        del space
    return space.result(
        held, floor, k, method="subspace", seed=seed, converged=converged, goal=tol, wanted=rank,
        settings={**settings, "depth": iterations},
    )  # fmt: skip


def _iterate(operator, width, rank, tol, held, floor, generator, start, max_products):
    """Iterate a basis of `width` columns until `rank` residuals hold, or until leave-one-out stops falling."""
    state = generator.get_state()

    def probes() -> torch.Tensor:  # drawn again where they are needed again: they are as large as a basis
        generator.set_state(state)
        drawn = gaussian(operator.shape[1], width, generator, operator)
        if start is not None:
            warm = start[:, :width].to(drawn)
            drawn = torch.cat([warm, drawn[:, warm.shape[1] :]], 1)
        return drawn

    # Rough products while the subspace is sought; what is returned comes from a pass in full precision.
    rough = operator.rough() if rank is not None else None
    image = (rough or operator).matmat(probes())
    Q, chain = range_basis(image, floor)
    shift, before, iterations = 0.0, float("inf"), 0
    own = rough is None  # is Q an image of the operator itself?
    while True:
        if rough is not None and operator.products + 2 * width >= max_products:
            rough, shift = None, 0.0
        current = rough or operator
        space = Space(current)
        P = space.add(Q, floor)
        whole = Q.shape[1] < width or width == min(operator.shape) or P.shape[1] < Q.shape[1]
        if whole and own:
            return space, True, iterations  # Q spans the whole range: nothing to iterate for
        if whole:  # the range that rough products see is not the operator's
            rough, own, shift, image = None, True, 0.0, operator.matmat(probes())
            Q, chain = range_basis(image, floor)
            continue
        iterations += 1
        mapped = current.matmat(P)
        Y = mapped @ space.T.to(P.dtype)  # RRᵀQ
        del P  # the space's alone, and gone with it when the next begins
        _, s, right = space.ritz()
        if rank is not None:
            # Rv = RRᵀQ y/σ, so the residual needs no product of its own.
            y = right[:, :rank]
            worst = float(difference_norms(Y, y / s[:rank].clamp_min(floor), Q, y * s[:rank]).max())
            operator.bar.describe(f"iteration {iterations}, residual {worst / float(s[0]):.1e} λ₁")
            done = worst <= max(tol * float(s[0]) - 2 * floor, floor)  # the certificate adds the floor, products round
            if rough is not None:
                if done or worst <= ROUGH * float(s[0]) or worst > PROGRESS * before:
                    del mapped
                    Q, _ = range_basis(Y - shift * Q, floor)
                    rough, shift = None, 0.0
                    continue
                before = worst
        else:
            # ‖R − QQᵀR‖_F of a fixed width levels off; a wider basis is then what helps.
            unseen = leave_one_out(Q, chain, image)
            operator.bar.describe(f"width {width}, left out {unseen / held.norm:.1e} ‖R‖")
            done = unseen >= 0.9 * before or held.factor * unseen <= 0.5 * tol * held.norm
            before = unseen
        if done or operator.products >= max_products:
            space.image = mapped
            return space, done, iterations
        del mapped
        Q, C = tall_qr(Y - shift * Q)
        own = current is operator
        chain = _normalised(C @ chain)
        lowest = float(small_svd(C)[1][-1])
        if lowest > shift:  # dashSVD, alg. 3: the shift may only grow, and stays below half of λ_l²
            shift = (shift + lowest) / 2


def _normalised(chain: Tensor) -> Tensor:
    """Columns scaled to unit norm: leave-one-out knows their directions only, and powers overflow."""
    return chain / torch.linalg.norm(chain, dim=0).clamp_min(torch.finfo(torch.float64).tiny)
