"""The SVDs of many dense matrices of one shape at once, as a batch of inputs makes them.

A Gram matrix in float64 has digits to spare for float32, as in `specxai.svd.exact`: its eigenvectors are one side, and
the other is what the matrix makes of them.  In float64 squares would lose half of the digits; LAPACK's SVD
serves there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from specxai.svd.certify import FLOORS, rounding_floor
from specxai.svd.orth import gram, leading_eigh

__all__ = ["DenseSVDs", "dense_svds"]

AT_ONCE = 16 << 20  # bytes of matrices on the CPU: ten times as many are at work, in float64


@dataclass(frozen=True)
class DenseSVDs:
    """R_i ≈ U_i diag(S_i) V_iᵀ of B matrices (m, n), on their device; numbers in float64.

    U (B, m, k), S (B, k) descending, V (B, n, k)
    residuals   (B, k), bounds of max(‖Rv − σu‖, ‖Rᵀu − σv‖)
    errors      (B,), bounds of ‖R − UΣVᵀ‖_F when only the first `counts` triplets are taken
    norms, floors   (B,): ‖R‖_F, and what rounding may add to a product
    counts      (B,): triplets above the floor, of the rank asked for, or as many as the tolerance needs
    """

    U: Tensor
    S: Tensor
    V: Tensor
    residuals: Tensor
    errors: Tensor
    norms: Tensor
    floors: Tensor
    counts: Tensor


def dense_svds(R: Tensor, rank: int | None = None, tol: float | None = None,
               rounding: Tensor | float = 0.0) -> DenseSVDs:
    """The leading triplets of each of R (B, m, n), in float32 or float64.

    rank       at most so many, None for all
    tol        without a rank: as many as bring ‖R − UΣVᵀ‖_F below tol · ‖R‖_F
    rounding   (B,): how far R_i may be, in ‖·‖_F, from the map that it stands for; residuals and errors contain it

    >>> import torch
    >>> found = dense_svds(torch.tensor([[[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), rank=1)
    >>> round(float(found.S[0, 0]), 5), round(float(found.errors[0]), 3)
    (3.0, 1.0)
    """
    apart = torch.as_tensor(rounding, dtype=torch.float64, device=R.device).expand(len(R))
    step = max(1, AT_ONCE // max(1, R[:1].nbytes)) if R.device.type == "cpu" else max(1, len(R))
    parts = [_dense_svds(*part, rank, tol) for part in zip(R.split(step), apart.split(step), strict=True)]
    if len(parts) == 1:
        return parts[0]
    return DenseSVDs(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(DenseSVDs)))


def _dense_svds(R: Tensor, apart: Tensor, rank: int | None, tol: float | None) -> DenseSVDs:
    turned = R.shape[1] > R.shape[2]
    tall = (R if turned else R.mT).double()  # Y Σ Xᵀ, (B, n, w)
    k = tall.shape[2] if rank is None else min(rank, tall.shape[2])
    if R.dtype is torch.float32:
        X, S, Y, norms = _by_gram(tall, R if turned else R.mT, k)
        beyond = norms**2 - S.square().sum(1)
    else:
        Y, S, Xt = torch.linalg.svd(tall, full_matrices=False)
        norms, beyond = torch.linalg.norm(S, dim=1), S[:, k:].square().sum(1)
        X, S, Y = Xt[:, :k].mT, S[:, :k], Y[..., :k]
    X, Y = X.to(R.dtype), Y.to(R.dtype)
    floors = rounding_floor(1.0, R.dtype) * norms
    image = tall.mT @ Y.double()
    forward = torch.linalg.norm(image - X.double() * S[:, None], dim=1)
    adjoint = torch.linalg.norm(tall @ X.double() - Y.double() * S[:, None], dim=1)
    # ‖R − UΣVᵀ‖² of the first 0, 1, … triplets: their residuals, and what is left out.
    left_out = torch.cat([S.square(), beyond.clamp_min(0)[:, None]], 1).flip(1).cumsum(1).flip(1)
    known = (left_out + F.pad(forward.square().cumsum(1), (1, 0))).sqrt()
    slack = torch.maximum(FLOORS * floors, apart)
    counts = (floors[:, None] < S).sum(1)
    if rank is None and tol is not None:
        enough = (known + slack[:, None] <= torch.maximum(tol * norms, slack)[:, None]).double()
        needed = torch.where(enough.any(1), enough.argmax(1), S.shape[1])
        counts = torch.minimum(counts, needed)
    errors = known.gather(1, counts[:, None])[:, 0] + slack
    residuals = torch.maximum(forward, adjoint) + torch.maximum(floors, apart)[:, None]
    U, V = (Y, X) if turned else (X, Y)
    return DenseSVDs(U, S, V, residuals, errors, norms, floors, counts)


def _by_gram(tall: Tensor, narrow: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X (B, w, k), σ (B, k), Y (B, n, k) and ‖R‖_F (B,), all float64, of matrices (n, w), given in float32 too."""
    # One after the other, the compiled kernel is several times as fast as a product in float64.
    G = torch.stack([gram(one.contiguous()) for one in narrow]) if tall.device.type == "cpu" else tall.mT @ tall
    X = leading_eigh((G + G.mT) / 2, k)
    Y = tall @ X
    norms = G.diagonal(dim1=1, dim2=2).sum(1).clamp_min(0).sqrt()
    # Beside a large eigenvalue, rounding may put small ones that are nearly equal in any order.
    S, order = torch.linalg.norm(Y, dim=1).sort(dim=1, descending=True)
    X, Y = (block.gather(2, order[:, None].expand_as(block)) for block in (X, Y))
    # Orthogonal but for rounding, which small singular values magnify; the leading ones stay as they are.
    null = torch.finfo(torch.float64).eps * norms[:, None] >= S
    Y = torch.where(null[:, None], 0.0, Y / torch.where(null, 1.0, S)[:, None])
    triangle, failed = torch.linalg.cholesky_ex(Y.mT @ Y + torch.diag_embed(null.double()))
    turned = torch.linalg.solve_triangular(triangle, Y.mT, upper=False).mT
    return X, S, torch.where((failed == 0)[:, None, None], turned, Y), norms
