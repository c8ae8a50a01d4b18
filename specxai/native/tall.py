"""Tall blocks: Gram matrices in double precision, coefficients in an orthonormal basis, and what is left without it."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.native.memory import empty
from specxai.native.module import compiled

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def gram(X: Tensor, Y: Tensor | None = None, level: str | None = None) -> Tensor:
    """Xᵀ Y (Xᵀ X without Y) for X (m, b), Y (m, c) of one dtype, contiguous, on the CPU: (b, c) float64.

    Products and sums are in float64.  Equal arguments give equal bits, on any number of threads.

    >>> gram(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[10.0, 14.0], [14.0, 20.0]]
    """
    Y = X if Y is None else Y
    _check(X=X, Y=Y)
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
    _check(basis=basis, X=X)
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
    _check(basis=basis, X=X)
    out = empty(*X.shape, dtype=X.dtype) if out is None else out
    _check(X=X, out=out)
    _fit(basis, X)
    if not isinstance(H, Tensor) or H.dtype is not torch.float64 or H.shape != (len(basis), X.shape[1]) or not takes(H):
        raise ValueError(f"H must be contiguous float64 on the CPU, {(len(basis), X.shape[1])}; got {_said(H)}")
    if out.shape != X.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, X has {tuple(X.shape)}")
    if X.numel() == 0:
        return out
    _kernel("subtract", X)(basis=basis.data_ptr(), n_basis=len(basis), factors=H.data_ptr(), block=X.data_ptr(),
                           width=X.shape[1], n=len(X), output=out.data_ptr(), level=level)
    return out


def takes(X: Tensor) -> bool:
    """Can the kernels have this block?"""
    return (isinstance(X, Tensor) and X.device.type == "cpu" and X.layout is torch.strided and X.dtype in _SUFFIX
            and X.is_contiguous() and not X.is_neg())


def _kernel(name: str, X: Tensor):
    return getattr(compiled(), f"{name}_{_SUFFIX[X.dtype]}")


def _check(**blocks: Tensor) -> None:
    """All are matrices that the kernels take, of one dtype."""
    for name, block in blocks.items():
        if not takes(block) or block.ndim != 2:
            raise ValueError(f"{name} must be a contiguous matrix of float32 or float64 on the CPU, got {_said(block)}")
    if len({block.dtype for block in blocks.values()}) > 1:
        raise ValueError("one dtype is needed: " + ", ".join(f"{name} is {b.dtype}" for name, b in blocks.items()))


def _said(block) -> str:
    """What was given instead."""
    if not isinstance(block, Tensor):
        return type(block).__name__
    if block.layout is not torch.strided:
        return f"{block.dtype} {tuple(block.shape)} of layout {block.layout}"
    lazy = ", a lazy negative view (call .resolve_neg())" if block.is_neg() else ""
    return f"{block.dtype} {tuple(block.shape)} on {block.device}, strides {block.stride()}{lazy}"


def _fit(basis: Tensor, X: Tensor) -> None:
    if basis.shape[1] != len(X):
        raise ValueError(f"basis vectors have {basis.shape[1]} numbers, X has {len(X)} rows")
