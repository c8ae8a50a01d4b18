"""All singular triplets through the narrowest cut, without iterating.

R = A B with A (m, w), B (w, n).  A and Bᵀ come from products with identity blocks; A = Q_A C_A and Bᵀ = Q_B C_B, and
the SVD of the w × w matrix C_A C_Bᵀ = X Σ Yᵀ gives R = (Q_A X) Σ (Q_B Y)ᵀ.  A bottleneck of 8 costs 8 columns.  Without
a cut narrower than R, the smaller side of R itself is the cut, with an identity for the other factor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from specxai.operators import Cut, LinearOperator, identity_blocks, require_memory
from specxai.svd.certify import FLOORS, residual_norms, rounding_floor
from specxai.svd.orth import small_svd, tall_qr
from specxai.svd.products import Counted
from specxai.svd.result import SVDResult

__all__ = ["exact", "useful_cut"]


def useful_cut(operator: LinearOperator) -> Cut | None:
    """The operator's narrowest cut where it is narrower than the operator, else None."""
    cut = operator.narrowest_cut()
    return cut if cut is not None and cut.width < min(operator.shape) else None


def exact(operator: Counted, rank: int | None, tol: float | None, *, seed: int, settings: dict) -> SVDResult:
    """The triplets above the rounding floor: all of them, the `rank` leading, or as many as `tol` ‖R‖_F needs."""
    cut = useful_cut(operator)
    m, n = operator.shape
    width = min(m, n) if cut is None else cut.width
    # Both factors, their bases and the result of one; float64 for the small matrix and its SVD.
    needed = operator.dtype.itemsize * 3 * (m + n) * width + 8 * 6 * width**2
    require_memory(needed, operator.device, f"an exact SVD of {m} x {n} through {width} dimensions",
                   "give rank= or tol= for the leading triplets")
    if cut is None:
        (QA, QB, core), scale = _smaller_side(operator), None
    else:
        A = _columns(cut.left, operator, count=True)
        B = _columns(cut.right.T, operator, count=False)  # the other half of the same columns
        _check_finite(operator, A, B)
        (QA, CA), (QB, CB) = tall_qr(A), tall_qr(B)
        core = CA @ CB.mT
        # Factors that are large where their product is small: rounding is relative to the factors.
        scale = float(min(_norm(CA) * _spectral(CB), _spectral(CA) * _norm(CB)))
        del A, B
    X, s, Yt = small_svd(core)
    norm = float(torch.linalg.norm(s))
    floor = rounding_floor(norm if scale is None else max(norm, scale), operator.dtype)
    k = int((s > floor).sum())
    if rank is not None:
        k = min(k, rank)
    elif tol is not None:
        tails = torch.cat([(s**2).flip(0).cumsum(0).flip(0), s.new_zeros(1)])
        k = min(k, int((tails > max(tol * norm - 2 * FLOORS * floor, 0.0) ** 2).sum()))
    dtype = operator.dtype
    S = s[:k].to(dtype)
    U = QA @ X[:, :k].to(dtype) if QA is not None else X[:, :k].to(dtype)
    V = QB @ Yt[:k].mT.to(dtype) if QB is not None else Yt[:k].mT.to(dtype).contiguous()
    forward, adjoint = residual_norms(operator, U, S, V)
    # ‖R − UΣVᵀ‖_F² = ‖RV − UΣ‖_F² + ‖R(I − VVᵀ)‖_F², the first measured, the second known.
    error = math.sqrt(float((s[k:] ** 2).sum() + (forward**2).sum())) + FLOORS * floor
    return SVDResult(
        U=U,
        S=S,
        V=V,
        residuals=torch.maximum(forward, adjoint) + floor,
        error=error,
        estimate=error,
        norm=norm,
        floor=floor,
        method="exact",
        products=operator.products,
        seed=seed,
        settings={**settings, "width": width, "through_cut": cut is not None},
    )


def _smaller_side(operator: Counted) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """(Q_A, Q_B, core) from R itself; the identity factor is None."""
    m, n = operator.shape
    if m < n:
        B = _columns(operator.T, operator, count=False)
        _check_finite(operator, B)
        QB, CB = tall_qr(B)
        return None, QB, CB.mT
    A = _columns(operator, operator, count=False)
    _check_finite(operator, A)
    QA, CA = tall_qr(A)
    return QA, None, CA


def _columns(factor: LinearOperator, operator: Counted, *, count: bool) -> Tensor:
    """`factor` as a tall matrix (rows, w), by products with identity blocks."""
    rows, w = factor.shape
    dense = torch.empty(rows, w, dtype=operator.dtype, device=operator.device)
    for start, stop, block in identity_blocks(w, operator.dtype, operator.device):
        dense[:, start:stop] = factor.matmat(block)
        if count:
            operator.add(stop - start)
    return dense


def _norm(C: Tensor) -> float:
    return float(torch.linalg.norm(C))


def _spectral(C: Tensor) -> float:
    """‖C‖₂ from above, as the root of its largest Gram row sum: an SVD would cost as much as the answer."""
    gram = C @ C.mT if C.shape[0] <= C.shape[1] else C.mT @ C
    return math.sqrt(float(gram.abs().sum(1).max())) if gram.numel() else 0.0


def _check_finite(operator: Counted, *factors: Tensor) -> None:
    if not all(bool(torch.isfinite(factor).all()) for factor in factors):
        raise ValueError(
            f"{operator.operator!r} gives values that are not finite: "
            "the model's weights or its input hold inf or nan, or a product overflows its dtype"
        )
