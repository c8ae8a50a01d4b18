"""A pair of orthonormal bases and the matrix between them: Qᵀ R = Tᵀ Pᵀ.

Q (m, q) spans left directions, and Rᵀ Q = P T holds its image, P (n, p) orthonormal, T (p, q) small and in float64.
With T = X Σ Yᵀ the Ritz triplets are u = Q y, σ, v = P x, and Rᵀu = σv to rounding: only ‖Rv − σu‖ says how far they
are from the truth.  Both solvers end in such a pair, whatever order they built it in.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from specxai.operators import LinearOperator
from specxai.svd import orth
from specxai.svd.certify import FLOORS, HeldOut, adjoint_residuals, distances, forward_residuals
from specxai.svd.orth import small_eigh, small_svd, tall_product
from specxai.svd.products import Counted
from specxai.svd.result import SVDResult

__all__ = ["Extend", "Space"]

Extend = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]  # as `orth.extend`


class Basis:
    """Columns (rows, q) that come block by block.

    The first block is kept as it is; with the second they become rows of a buffer with room for more, so that what is
    there is copied once in a while and not every time.
    """

    GROWTH = 1.5
    GROWTH_ON_CPU = 3.0  # where room that is not used takes no memory

    def __init__(self, rows: int, operator: LinearOperator) -> None:
        self.columns = torch.zeros(rows, 0, dtype=operator.dtype, device=operator.device)
        self._buffer: Tensor | None = None

    @property
    def size(self) -> int:
        return self.columns.shape[1]

    def append(self, block: Tensor) -> None:
        old, size = self.columns, self.size + block.shape[1]
        if self.size == 0:
            self.columns, self._buffer = block, None
            return
        if self._buffer is None or size > len(self._buffer):
            growth = self.GROWTH_ON_CPU if old.device.type == "cpu" else self.GROWTH
            self._buffer = old.new_empty(max(size, int(growth * self.size)), len(old))
            self._buffer[: self.size] = old.T
        self._buffer[self.size : size] = block.T
        self.columns = self._buffer[:size].T

    def cut(self, size: int) -> None:
        """The first `size` columns alone."""
        self.columns = self.columns[:, :size]

    def replace(self, columns: Tensor) -> None:
        """Other columns instead."""
        self.columns, self._buffer = columns, None


class Space:
    """The bases Q, P and the projection T, grown block by block.

    image, back   RP and RᵀQ, where all of them has been multiplied at once or is kept: RV and RᵀU are then part of
                  them, to rounding

    keep_all      keep them, which takes as much memory as the bases do
    """

    def __init__(self, operator: LinearOperator, keep_first: bool = False, keep_all: bool = False) -> None:
        m, n = operator.shape
        self.operator = operator
        self._images = (Basis(m, operator), Basis(n, operator)) if keep_all else None
        self._keep_first = keep_first  # RᵀQ of the first block, which takes as much memory as P
        self._left, self._right = Basis(m, operator), Basis(n, operator)
        self.T = torch.zeros(0, 0, dtype=torch.float64, device=operator.device)
        self.image: Tensor | None = None
        self.back: Tensor | None = None

    @property
    def size(self) -> int:
        return self._left.size

    @property
    def Q(self) -> Tensor:
        return self._left.columns

    @property
    def P(self) -> Tensor:
        return self._right.columns

    def add(self, Q: Tensor, floor: float, extend: Extend | None = None) -> Tensor:
        """Take new left directions Q (m, b), orthonormal to the old; return the new right directions (n, r).

        extend   how the right basis grows, instead of `orth.extend`
        """
        mapped, first = self.operator.rmatmat(Q), self._keep_first and self.size == 0
        kept = first or self._images is not None
        if extend is None:
            P, H, C = orth.extend(self.P, mapped, floor, overwrite=self.operator.own_products and not kept)
        else:
            P, H, C = extend(self.P, mapped, floor)
        self.back = mapped if first else None
        if self._images is not None:
            self._images[1].append(mapped)
            self.back = self._images[1].columns
        below = torch.zeros(C.shape[0], self.size, dtype=torch.float64, device=self.T.device)
        self.T = torch.cat([torch.cat([self.T, H], 1), torch.cat([below, C], 1)], 0)
        self._left.append(Q)
        self._right.append(P)
        self.image = None
        return P

    def mapped(self, image: Tensor, whole: bool) -> None:
        """Take RP of the newest right directions; `whole` says that these are all."""
        if self._images is not None:
            self._images[0].append(image)
            self.image = self._images[0].columns
        elif whole:
            self.image = image

    def cut(self, left: int, right: int) -> None:
        """The space as it was when Q had `left` columns and P had `right`."""
        self._left.cut(left)
        self._right.cut(right)
        self.T = self.T[:right, :left]
        self.image = self.back = None
        if self._images is not None:
            for images, size in zip(self._images, (right, left), strict=True):
                images.cut(size)
            self.image, self.back = (images.columns for images in self._images)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """X (p, r), σ (r,), Y (q, r) with T = X Σ Yᵀ."""
        X, s, Yt = small_svd(self.T)
        return X, s, Yt.mT

    def leading(self, k: int) -> tuple[Tensor, Tensor]:
        """X (p, k) and σ (k,) of the k leading Ritz triplets.

        In float32 by the eigenvectors of T Tᵀ: a quarter of an SVD's time, and digits to spare.
        """
        if self.operator.dtype is torch.float32:
            X, squares = small_eigh(self.T @ self.T.mT)
            return X[:, :k], squares[:k].clamp_min(0).sqrt()
        X, s, _ = self.ritz()
        return X[:, :k], s[:k]

    def compress(self, keep: int) -> None:
        """Keep the `keep` leading Ritz pairs only (thick restart, Baglama & Reichel 2005)."""
        X, s, Y = self.ritz()
        self.image = self.back = None
        if self._images is not None:
            for images, small in zip(self._images, (X, Y), strict=True):
                images.replace(tall_product(images.columns, small[:, :keep]))
            self.image, self.back = (images.columns for images in self._images)
        self._left.replace(tall_product(self.Q, Y[:, :keep]))
        self._right.replace(tall_product(self.P, X[:, :keep]))
        self.T = torch.diag(s[:keep])

    def truncation(self, s: Tensor, tol: float, unseen: float) -> int | None:
        """Least k with (Σ_{i>k} σᵢ² + unseen²)^½ ≤ tol (Σ σᵢ²)^½, or None; Σ σᵢ² ≤ ‖R‖_F², so the test is safe."""
        allowed = (tol * float(torch.linalg.norm(s))) ** 2 - unseen**2
        if allowed < 0:
            return None
        tails = torch.cat([(s**2).flip(0).cumsum(0).flip(0), s.new_zeros(1)])  # tails[k] = Σ_{i>k} σᵢ²
        return int((tails > allowed).sum())

    def result(self, held: HeldOut, floor: float, k: int, *, method: str, seed: int, converged: bool,
               goal: float, wanted: int | None, settings: dict):
        """The k leading triplets with every certificate; it ends the space, whose P and RP are given up.

        goal, wanted   residuals of so many triplets ≤ goal λ₁, or without a number ‖R − UΣVᵀ‖_F ≤ goal ‖R‖_F

        ‖R − UΣVᵀ‖_F² = ‖UᵀR − ΣVᵀ‖_F² + Σ_{i>k} σᵢ² + ‖(I − QQᵀ)R‖_F²: the first measured by real products, the second
        known, the third from the held-out probes.
        """
        operator = self.operator
        X, s, Y = self.ritz()
        k = min(k, int((s > floor).sum()))
        dtype = operator.dtype
        U, S = tall_product(self.Q, Y[:, :k]), s[:k].to(dtype)
        # Before V takes P's memory, which an operator that returns its argument has made RP's too.
        forward = None if self.image is None else distances(tall_product(self.image, X[:, :k]), U, S)
        self.image = None
        V = tall_product(self.P, X[:, :k], overwrite=2 * k > X.shape[0])  # else most of P would stay for its sake
        self._right.replace(V)  # P is not needed any more, and as large as an operator's blocks
        forward = forward_residuals(operator, U, S, V) if forward is None else forward
        back, self.back = self.back, None
        adjoint = adjoint_residuals(operator, U, S, V) if back is None else distances(
            tall_product(back, Y[:, :k]), V, S)
        known = float((s[k:] ** 2).sum() + (adjoint**2).sum())
        unseen = held.unseen(self.Q)
        norm = max(held.norm, float(torch.linalg.norm(s)))  # Σσᵢ² ≤ ‖R‖_F², of which the other is an estimate
        residuals = torch.maximum(forward, adjoint) + floor
        error = math.sqrt(known + (held.factor * unseen) ** 2) + FLOORS * floor
        return SVDResult(
            U=U,
            S=S,
            V=V,
            residuals=residuals,
            error=error,
            estimate=math.sqrt(known + unseen**2),
            norm=norm,
            floor=floor,
            method=method,
            products=operator.spent if isinstance(operator, Counted) else 0,
            seed=seed,
            converged=converged and (error <= goal * norm if wanted is None else _hold(residuals, S, goal, floor)),
            settings={**settings, "basis": self.size},
        )


def _hold(residuals: Tensor, S: Tensor, goal: float, floor: float) -> bool:
    """Are all residuals ≤ goal λ₁, or as near to the rounding floor as one comes?"""
    return not len(S) or float(residuals.max()) <= max(goal * float(S[0]), FLOORS * floor)
