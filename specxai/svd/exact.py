"""All singular triplets through the narrowest cut, without iterating.

R = A Bᵀ with A (m, w), B (n, w) from products with identity blocks; A = Q C, so that R = Q (B Cᵀ)ᵀ, and what is left is
the SVD of one tall factor, B Cᵀ = V Σ Xᵀ: R = (Q X) Σ Vᵀ.  A bottleneck of 8 costs 8 columns.  Without a cut that is
worth it, the smaller side of R itself is the cut, and A the identity.

In float32 the tall factor is never orthonormalised: its Gram matrix in float64 has digits to spare, and X is made of
its eigenvectors.  In float64 squares would lose half of the digits: there B = Q_B C_B and C C_Bᵀ = X Σ Yᵀ.

All of R has been multiplied, so that residuals need no products of their own: Rv and Rᵀu are what A and B make of them.
How far products round, which a map whose parts cancel does more than its size tells, a few random columns measure, by
the statement of `HeldOut`.  Where there are no more triplets than these columns, each has products of its own instead,
and what is left out of them is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specxai._blocks import identity_blocks, require_memory
from specxai.operators import Cut, LinearOperator
from specxai.svd.certify import (
    COLUMNS,
    FLOORS,
    HELD_OUT,
    distances,
    product_distances,
    residual_norms,
    rounding_floor,
    safety_factor,
)
from specxai.svd.orth import gram, small_eigh, small_svd, tall_product, tall_qr
from specxai.svd.products import Counted, gaussian, generator_of, scale_of
from specxai.svd.result import SVDResult

__all__ = ["exact", "useful_cut"]

# Of the operator's smaller side, what a cut may have at most: two factors cost more than a few columns of zeros.
WORTH_A_CUT = 0.75
# Random columns, each way, whose products are compared with those of the factors.
SAMPLED = HELD_OUT


@dataclass
class Factors:
    """R = Q C Bᵀ as its products with identity blocks have it; None stands for an identity."""

    Q: Tensor | None
    C: Tensor | None
    B: Tensor

    def inside(self, V: Tensor) -> Tensor:
        """C Bᵀ V, so that R V = Q times it, in float64."""
        image = gram(self.B, V.contiguous())
        return image if self.C is None else self.C @ image

    def across(self, U: Tensor) -> Tensor:
        """Cᵀ Qᵀ U, so that Rᵀ U = B times it, in float64."""
        image = U.double() if self.Q is None else gram(self.Q, U.contiguous())
        return image if self.C is None else self.C.mT @ image

    def residuals(self, U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """‖Rv − λu‖ and ‖Rᵀu − λv‖ per triplet, each (k,) float64."""
        parts = []
        for start in range(0, len(S), COLUMNS):
            part = slice(start, start + COLUMNS)
            u, s, v = U[:, part], S[part], V[:, part]
            image = self.inside(v)
            forward = distances(image, u, s) if self.Q is None else product_distances(self.Q, image, u, s)
            parts.append(torch.stack([forward, product_distances(self.B, self.across(u), v, s)]))
        return tuple(torch.cat(parts, 1))

    def outside(self, V: Tensor, generator: torch.Generator) -> float:
        """Bound of ‖R − R V Vᵀ‖_F for the factors' R, as in `HeldOut`: it fails with probability 1e-5."""
        probes = torch.randn(len(V), SAMPLED, generator=generator, dtype=torch.float64, device="cpu").to(V)
        rest = probes - tall_product(V, gram(V, probes))
        return safety_factor(SAMPLED) / math.sqrt(SAMPLED) * float(torch.linalg.norm(self.inside(rest)))

    def rounding(self, operator: LinearOperator, generator: torch.Generator, adjoint: bool) -> list[float]:
        """Bounds of ‖R − Q C Bᵀ‖_F, R being the operator's own products: forward, and where asked for adjoint ones.

        As in `HeldOut`: each fails with probability 1e-5.  Not finite where a product is not.
        """
        m, n = operator.shape
        probes = gaussian(n, SAMPLED, generator, operator)
        image = self.inside(probes) if self.Q is None else tall_product(self.Q, self.inside(probes))
        differences = [operator.matmat(probes).double() - image.double()]
        if adjoint:
            probes = gaussian(m, SAMPLED, generator, operator)
            differences.append(operator.rmatmat(probes).double() - tall_product(self.B, self.across(probes)).double())
        factor = safety_factor(SAMPLED) / math.sqrt(SAMPLED)
        return [factor * float(torch.linalg.norm(difference)) for difference in differences]


def useful_cut(operator: LinearOperator) -> Cut | None:
    """The operator's narrowest cut where it is clearly narrower than the operator, else None."""
    cut = operator.narrowest_cut()
    return cut if cut is not None and cut.width <= WORTH_A_CUT * min(operator.shape) else None


def exact(operator: Counted, rank: int | None, tol: float | None, *, seed: int, settings: dict) -> SVDResult:
    """The triplets above the rounding floor: all of them, the `rank` leading, or as many as `tol` ‖R‖_F needs."""
    cut = useful_cut(operator)
    m, n = operator.shape
    width = min(m, n) if cut is None else cut.width
    # Both factors, their bases and the result of one; float64 for the small matrix and its SVD.
    needed = operator.dtype.itemsize * 3 * (m + n) * width + 8 * 6 * width**2
    require_memory(needed, operator.device, f"an exact SVD of {m} x {n} through {width} dimensions",
                   "give rank= or tol= for the leading triplets")
    Q, C, B, flipped = _factors(operator, cut)
    X, s, right, scale = (_by_gram if operator.dtype is torch.float32 else _by_qr)(B, C)
    norm = float(torch.linalg.norm(s))
    floor = rounding_floor(norm if cut is None else max(norm, scale), operator.dtype)
    k = int((s > floor).sum())
    if rank is not None:
        k = min(k, rank)
    elif tol is not None:
        tails = torch.cat([(s**2).flip(0).cumsum(0).flip(0), s.new_zeros(1)])
        k = min(k, int((tails > max(tol * norm - 2 * FLOORS * floor, 0.0) ** 2).sum()))
    S = s[:k].to(operator.dtype)
    left = X[:, :k].to(operator.dtype)
    U, V = left if Q is None else tall_product(Q, left), right(k)
    del right
    few, factors, turned = k <= SAMPLED, Factors(Q, C, B), operator.T if flipped else operator
    rounding = [0.0, 0.0]
    if not few or k < width:
        rounding = factors.rounding(turned, generator_of(seed), adjoint=not few)
    # ‖R − UΣVᵀ‖_F² = ‖RV − UΣ‖_F² + ‖R(I − VVᵀ)‖_F², the first measured, the second known but for rounding.
    forward, adjoint = (residual_norms(turned, U, S, V) if few else factors.residuals(U, S, V))
    _check_finite(operator, forward, adjoint, torch.tensor(rounding, device="cpu"))
    left_out = float((s[k:] ** 2).sum()) if k < width else factors.outside(V, generator_of(seed + 1)) ** 2
    known = math.sqrt(left_out + float((forward**2).sum()))
    error = known + max(FLOORS * floor, *rounding)
    del Q, B, factors
    if flipped:
        U, V = V, U
    return SVDResult(
        U=U,
        S=S,
        V=V,
        residuals=torch.maximum(forward, adjoint) + (floor if few else max(floor, *rounding)),
        error=error,
        estimate=error,
        norm=norm,
        floor=floor,
        method="exact",
        products=operator.products,
        seed=seed,
        converged=rank is not None or tol is None or error <= tol * norm,
        settings={**settings, "width": width, "through_cut": cut is not None},
    )


def _factors(operator: Counted, cut: Cut | None) -> tuple[Tensor | None, Tensor | None, Tensor, bool]:
    """Q, C, B with R = Q C Bᵀ, or Rᵀ where `flipped`: B is the taller factor.  None for identities."""
    m, n = operator.shape
    if cut is None:
        B = _columns(operator if m >= n else operator.T, operator, count=False)
        _check_finite(operator, B)
        return None, None, B, m >= n
    A = _columns(cut.left, operator, count=True)
    B = _columns(cut.right.T, operator, count=False)  # the other half of the same columns
    _check_finite(operator, A, B)
    # Each on its own, as a product within the range of numbers may have factors that are not.
    scales = [scale_of(factor) or 1.0 for factor in (A, B)]
    for factor, scale in zip((A, B), scales, strict=True):
        factor.mul_(scale)
    operator.scale = scales[0] * scales[1]
    flipped = m > n
    if flipped:
        A, B = B, A
    return *tall_qr(A), B, flipped


def _by_gram(B: Tensor, C: Tensor | None) -> tuple[Tensor, Tensor, Callable[[int], Tensor], float]:
    """X, σ, k -> the k leading columns of V, and the size of the factors, from the Gram matrix of B."""
    G = gram(B)
    core = G if C is None else C @ G @ C.mT
    X, squares = small_eigh((core + core.mT) / 2)
    s = squares.clamp_min(0).sqrt()

    def right(k: int) -> Tensor:
        # Columns of length σ, orthogonal but for the rounding of the product: their triangle is all but diagonal.
        mapped = X[:, :k] if C is None else C.mT @ X[:, :k]
        V, triangle = tall_qr(tall_product(B, mapped), overwrite=True)
        turned = triangle.diagonal() < 0
        if turned.any():
            V[:, turned] *= -1
        return V

    return X, s, right, _scale(C, G)


def _by_qr(B: Tensor, C: Tensor | None) -> tuple[Tensor, Tensor, Callable[[int], Tensor], float]:
    """The same from a basis of B."""
    QB, CB = tall_qr(B)
    X, s, Yt = small_svd(CB.mT if C is None else C @ CB.mT)
    return X, s, lambda k: tall_product(QB, Yt[:k].mT), _scale(C, CB.mT @ CB)


def _scale(C: Tensor | None, G: Tensor) -> float:
    """‖A‖ ‖B‖ from A = Q C and G = BᵀB: rounding is relative to factors, which are large where A Bᵀ may be small."""
    if C is None or not G.numel():
        return 0.0
    (left, left_2), (right, right_2) = _norms(C.mT @ C), _norms(G)
    return min(left * right_2, left_2 * right)


def _norms(gram: Tensor) -> tuple[float, float]:
    """‖·‖_F, and ‖·‖₂ from above by the largest row sum: an SVD would cost as much as the answer."""
    return math.sqrt(float(gram.trace())), math.sqrt(float(gram.abs().sum(1).max()))


def _columns(factor: LinearOperator, operator: Counted, *, count: bool) -> Tensor:
    """`factor` as a tall matrix (rows, w), by products with identity blocks."""
    rows, w = factor.shape
    dense = torch.empty(rows, w, dtype=operator.dtype, device=operator.device)
    for start, stop, block in identity_blocks(w, operator.dtype, operator.device):
        dense[:, start:stop] = factor.matmat(block)
        if count:
            operator.add(stop - start)
    return dense


def _check_finite(operator: Counted, *factors: Tensor) -> None:
    if not all(bool(torch.isfinite(factor).all()) for factor in factors):
        raise ValueError(
            f"{operator.operator!r} gives values that are not finite: "
            "the model's weights or its input hold inf or nan, or a product overflows its dtype"
        )
