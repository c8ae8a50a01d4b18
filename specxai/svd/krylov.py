"""Block Krylov: Golub-Kahan bidiagonalisation with blocks and full reorthogonalisation.

The basis spans [RΩ, (RRᵀ)RΩ, …, (RRᵀ)^d RΩ].  For a gap-free guarantee d ~ log n / √ε is enough, where subspace
iteration needs log n / ε (Musco & Musco 2015, arXiv 1504.05477, thm 1; Tropp & Webber 2023, arXiv 2306.12418).  Both
bases are orthonormalised at every step, so the powers are never formed and small singular values are not squared away.
The depth grows until the certificates hold; past `max_basis` a thick restart keeps the leading Ritz pairs.

Where an operator has rough products and the tolerance is not much finer than their rounding, a first basis is grown
from those.  Its leading Ritz vectors carry the noise of rounding, which points anywhere, so that R, which is small on a
random direction, takes it away: a block of them, multiplied there and back in full precision, mostly holds already.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from specxai.svd import orth
from specxai.svd.auto import FIRST, GUARD
from specxai.svd.certify import FLOORS, HeldOut, rounding_floor
from specxai.svd.deferred import Steps
from specxai.svd.orth import small_svd_cost, tall_product
from specxai.svd.products import Counted, gaussian, generator_of
from specxai.svd.result import SVDResult
from specxai.svd.space import Extend, Space

__all__ = ["krylov"]

# The projected SVD is repeated when the products since cost this many times as much, then after this part of the way
# that the last two residuals foretell, and at the latest when the basis has grown by this factor.
CHECK_WORTH, CHECK_AHEAD, CHECK_GROWTH = 2, 0.6, 1.12
# On a device, which idles while the host looks, by this factor, and after so many steps at the least: on no card yet
# measured.
DEFERRED_GROWTH, DEFERRED_STEPS = 1.25, 2
# Share of the full basis that a thick restart keeps: more than the wanted pairs, since their neighbours speed them up.
KEPT = 0.4
KEPT_IMAGES = 64 << 20  # bytes of products of whole bases, which then need no others for their residuals
SOUGHT = 1.5  # of the tolerance, what a basis of rough products must reach: the block that finishes lowers it further


def krylov(
    operator: Counted,
    rank: int | None,
    tol: float,
    *,
    block: int,
    rough: bool,
    max_basis: int | None,
    max_products: int,
    seed: int,
    start: Tensor | None = None,
    settings: dict,
) -> SVDResult:
    """Leading triplets by block Krylov.

    With a rank: until each of its residuals is certain to be ≤ tol λ₁, or is near the floor.  Without: until the error
    bound is ≤ tol ‖R‖_F; the basis is then not restarted.  `start` (n, j) replaces the first j probes (a warm start).
    `rough`: a rank is sought with rough products first.
    """
    generator = generator_of(seed)
    held = HeldOut(operator, generator)
    floor = rounding_floor(held.norm, operator.dtype)
    growth = _Growth(rank, tol, held, floor, generator, block, max_basis, max_products)
    if rough:
        space = Space(operator.rough())
        growth.tol, growth.max_products = SOUGHT * tol, max_products - 6 * (rank + GUARD)
        growth.run(space, start)
        X, _ = space.leading(rank + GUARD)
        start = tall_product(space.P, X)
        del space, X
        growth.tol, growth.max_products, growth.block = tol, max_products, max(block, start.shape[1])
        settings = {**settings, "rough_depth": growth.depth}
    image_bytes = sum(operator.shape) * operator.dtype.itemsize * (max_basis or FIRST)
    space = Space(operator, rough, image_bytes <= KEPT_IMAGES)
    converged = growth.run(space, start)
    return space.result(
        held, floor, growth.k, method="krylov", seed=seed, converged=converged, goal=tol, wanted=rank,
        settings={**settings, "depth": growth.depth},
    )  # fmt: skip


class _Growth:
    """Blocks added to a space until its leading triplets hold; `k` of them, after `depth` blocks."""

    def __init__(self, rank: int | None, tol: float, held: HeldOut, floor: float, generator: torch.Generator,
                 block: int, max_basis: int | None, max_products: int) -> None:
        self.rank, self.tol, self.held, self.floor, self.generator = rank, tol, held, floor, generator
        self.block, self.max_basis, self.max_products = block, max_basis, max_products
        self.k, self.depth = rank or 0, 0
        self.seen: list[tuple[int, float, float]] = []  # the last two checks: basis, residual, goal

    def run(self, space: Space, start: Tensor | None) -> bool:
        """Did they converge?"""
        operator, rows = space.operator, space.operator.shape[0]
        new, next_check, self.depth, self.seen = self._fresh(space, start), 0, 0, []
        steps = Steps(space)
        while True:
            unseen = steps.begin(new, self.depth)
            if not unseen and (before := steps.settle()) is not None:
                new, self.depth = before
                continue
            if new.shape[1] == 0:  # the Krylov space is invariant: a repeated singular value may still hide outside
                new = self._fresh(space)
            if new.shape[1] == 0 or space.size >= rows:
                self.k = len(space.T) if self.rank is None else self.rank
                if self.rank is None:
                    self._tolerance_holds(space, space.ritz()[1])
                return True
            self.depth += 1
            right, new, C = self._step(space, new[:, : rows - space.size], steps.extend if unseen else None)
            if space.size >= rows or new.shape[1] == 0:
                continue
            full = self.max_basis is not None and space.size + new.shape[1] > self.max_basis
            restart = full and self.rank is not None
            spent = operator.spent >= self.max_products or (full and self.rank is None)
            if space.size < next_check and not (spent or restart):
                continue
            if (before := steps.settle()) is not None:
                new, self.depth = before
                continue
            if self._holds(space, C, right.shape[1]):
                return True
            columns = CHECK_WORTH * small_svd_cost(space.size) / (2 * max(1, operator.flops))
            columns = max(columns, CHECK_AHEAD * self._missing())
            growth, least = (DEFERRED_GROWTH, DEFERRED_STEPS * new.shape[1]) if steps.deferring else (CHECK_GROWTH, 1)
            next_check = space.size + max(least, min(int(columns), int((growth - 1) * space.size)))
            if spent:
                return False
            if restart:
                wanted = max(self.rank + self.block, int(KEPT * self.max_basis))
                space.compress(min(wanted, space.size - self.block))
                next_check = (space.size + self.max_basis) // 2

    def _step(self, space: Space, new: Tensor, extend: Extend | None) -> tuple[Tensor, Tensor, Tensor]:
        """A block there and back: the new right directions, the left ones to go on with, and their C.

        extend   how the bases grow, instead of `orth.extend`
        """
        right = space.add(new, self.floor, extend)
        mapped = space.operator.matmat(right)
        new, _, C = (extend or orth.extend)(space.Q, mapped, self.floor)
        space.mapped(mapped, self.depth == 1)
        return right, new, C

    def _fresh(self, space: Space, start: Tensor | None = None) -> Tensor:
        """New left directions from the operator's action on random vectors; none where the range is exhausted."""
        operator = space.operator
        probes = gaussian(operator.shape[1], min(self.block, *operator.shape), self.generator, operator)
        if start is not None:
            warm = start[:, : probes.shape[1]].to(probes)
            probes = torch.cat([warm, probes[:, warm.shape[1] :]], 1)
        # A probe has norm √n, so what rounding leaves of an exhausted range is that much larger than the floor.
        return orth.extend(space.Q, operator.matmat(probes / operator.shape[1] ** 0.5), self.floor)[0]

    def _holds(self, space: Space, C: Tensor, newest: int) -> bool:
        """Is the tolerance met?  (I − QQᵀ)RP is zero but for the `newest` columns of P, where it is new C."""
        bar = space.operator.bar
        if self.rank is None:
            return self._tolerance_holds(space, space.ritz()[1])
        X, s = space.leading(self.rank)
        residual = torch.linalg.norm(C @ X[X.shape[0] - newest :], dim=0)
        worst, largest = (float(t.max()) if t.numel() else float("inf") for t in (residual, s))
        bar.describe(f"basis {space.size}, residual {worst / largest if largest else 0:.1e} λ₁")
        goal = max(self.tol * largest - 2 * self.floor, self.floor)
        self.seen = [*self.seen[-1:], (space.size, worst, goal)]
        return space.size > self.rank and worst <= goal

    def _missing(self) -> float:
        """Columns until the residual meets its goal, if it goes on falling as between the last two checks."""
        if len(self.seen) < 2:
            return 0.0
        (before, larger, _), (now, worst, goal) = self.seen
        if not 0 < goal < worst < larger < math.inf:
            return 0.0
        return (now - before) * math.log(worst / goal) / math.log(larger / worst)

    def _tolerance_holds(self, space: Space, s: Tensor) -> bool:
        """Is the error bound of the leading `k` ≤ tol ‖R‖_F for some k?  All of them where it is not."""
        unseen = self.held.factor * self.held.unseen(space.Q)
        space.operator.bar.describe(f"basis {space.size}, unseen {unseen / max(self.held.norm, 1e-300):.1e} ‖R‖")
        found = space.truncation(s, self.tol, unseen + 2 * FLOORS * self.floor)
        self.k = len(s) if found is None else found
        return found is not None
