"""Gram matrices of tall blocks, in double precision."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.native.module import compiled

_KERNELS = {torch.float32: "gram_f32", torch.float64: "gram_f64"}


def gram(X: Tensor, Y: Tensor | None = None, level: str | None = None) -> Tensor:
    """Xᵀ Y (Xᵀ X without Y) for X (m, b), Y (m, c) of one dtype, contiguous, on the CPU: (b, c) float64.

    Products and sums are in float64.  Equal arguments give equal bits, on any number of threads.

    >>> gram(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[10.0, 14.0], [14.0, 20.0]]
    """
    Y = X if Y is None else Y
    for name, block in (("X", X), ("Y", Y)):
        if block.ndim != 2 or block.dtype not in _KERNELS or block.device.type != "cpu" or not block.is_contiguous():
            raise ValueError(f"{name} must be a contiguous matrix of float32 or float64 on the CPU, got {block.dtype} "
                             f"{tuple(block.shape)} on {block.device}, strides {block.stride()}")
    if Y.dtype is not X.dtype or len(Y) != len(X):
        raise ValueError(f"X is {X.dtype} {tuple(X.shape)} but Y is {Y.dtype} {tuple(Y.shape)}: one dtype and one "
                         "number of rows are needed")
    G = torch.zeros(X.shape[1], Y.shape[1], dtype=torch.float64)
    getattr(compiled(), _KERNELS[X.dtype])(left=X.data_ptr(), n_left=X.shape[1], right=Y.data_ptr(),
                                           n_right=Y.shape[1], n_rows=len(X), output=G.data_ptr(), level=level)
    return G


def takes(X: Tensor) -> bool:
    """Can the kernel have this block?"""
    return X.device.type == "cpu" and X.dtype in _KERNELS and X.is_contiguous()
