"""Tall blocks: Gram matrices in double precision, coefficients in an orthonormal basis, and what is left without it."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.native.checks import is_plain, require_matrices, said, suffix
from specxai.native.memory import empty
from specxai.native.module import compiled


def gram(X: Tensor, Y: Tensor | None = None, level: str | None = None) -> Tensor:
    """Xᵀ Y (Xᵀ X without Y) for X (m, b), Y (m, c) of one dtype, contiguous, on the CPU: (b, c) float64.

    Products and sums are in float64.  Equal arguments give equal bits, on any number of threads.

    >>> gram(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[10.0, 14.0], [14.0, 20.0]]
    """
    Y = X if Y is None else Y
    require_matrices(X=X, Y=Y)
    if len(Y) != len(X):
        raise ValueError(f"X is {tuple(X.shape)} but Y is {tuple(Y.shape)}: one number of rows is needed")
    G = torch.zeros(X.shape[1], Y.shape[1], dtype=torch.float64, device="cpu")
    if 0 in (*X.shape, *Y.shape):  # the other size may be any number
        return G
    _kernel("gram", X)(left=X.data_ptr(), n_left=X.shape[1], right=Y.data_ptr(), n_right=Y.shape[1], n_rows=len(X),
                       output=G.data_ptr(), level=level)
    return G


def coefficients(basis: Tensor, X: Tensor, level: str | None = None) -> Tensor:
    """`basis` X for a basis (q, m) of row vectors and a block X (m, b) of one dtype, contiguous: (q, b) float64.

    Equal arguments give equal bits, on any number of threads.

    >>> coefficients(torch.eye(2, 3), torch.tensor([[1.0], [2.0], [3.0]])).tolist()
    [[1.0], [2.0]]
    """
    require_matrices(basis=basis, X=X)
    _fit(basis, X)
    H = torch.zeros(len(basis), X.shape[1], dtype=torch.float64, device="cpu")
    if 0 in (*basis.shape, *X.shape):
        return H
    _kernel("coefficients", X)(basis=basis.data_ptr(), n_basis=len(basis), block=X.data_ptr(), width=X.shape[1],
                               n=len(X), output=H.data_ptr(), level=level)
    return H


def subtract(basis: Tensor, H: Tensor, X: Tensor, out: Tensor | None = None, level: str | None = None) -> Tensor:
    """X − `basis`ᵀ H for H (q, b) float64, the rest as in `coefficients`; into `out`, which may be X.

    >>> X = torch.tensor([[1.0], [2.0], [3.0]])
    >>> subtract(torch.eye(2, 3), coefficients(torch.eye(2, 3), X), X).flatten().tolist()
    [0.0, 0.0, 3.0]
    """
    require_matrices(basis=basis, X=X)
    out = empty(*X.shape, dtype=X.dtype) if out is None else out
    require_matrices(X=X, out=out)
    _fit(basis, X)
    if not is_plain(H, torch.float64) or H.shape != (len(basis), X.shape[1]) or not H.is_contiguous():
        raise ValueError(f"H must be contiguous float64 on the CPU, {(len(basis), X.shape[1])}; got {said(H)}")
    if out.shape != X.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, X has {tuple(X.shape)}")
    if X.numel() == 0:
        return out
    _kernel("subtract", X)(basis=basis.data_ptr(), n_basis=len(basis), factors=H.data_ptr(), block=X.data_ptr(),
                           width=X.shape[1], n=len(X), output=out.data_ptr(), level=level)
    return out


def _kernel(name: str, X: Tensor):
    return getattr(compiled(), f"{name}_{suffix(X.dtype)}")


def _fit(basis: Tensor, X: Tensor) -> None:
    if basis.shape[1] != len(X):
        raise ValueError(f"basis vectors have {basis.shape[1]} numbers, X has {len(X)} rows")
