"""A diagonal plus a low rank in groups of neighbouring units, of blocks (k, *S): in one pass on a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor


def has_kernels(device: torch.device) -> bool:
    """Are there Triton kernels for blocks on this device?  On a CPU in Triton's interpreter, for tests."""
    here = device.type == "cuda" or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")
    return here and find_spec("triton") is not None


def kernel_of(name: str, device: torch.device) -> Callable | None:
    """The kernel `specxai.kernels.NAME.NAME` where it runs on blocks of this device."""
    return getattr(import_module(f"specxai.kernels.{name}"), name) if has_kernels(device) else None


class Rows:
    """z ↦ d z + Σ_r left_r (right_rᵀ z) of every group.

    diagonal      (groups, n), as left and right of each r, in what is computed
    dtype         of what it makes
    """

    def __init__(self, diagonal: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> None:
        self.diagonal, self.left, self.right, self.dtype = diagonal, left, right, dtype
        self._kernel = kernel_of("group_rows", diagonal.device)

    def __call__(self, block: Tensor) -> Tensor:
        whole = block.reshape(len(block), *self.diagonal.shape)
        if self._kernel is not None:
            made = torch.empty(whole.shape, dtype=self.dtype, device=block.device)
            self._kernel(whole, self.diagonal, self.left, self.right, made)
        else:
            made = self._plain(whole).to(self.dtype)
        return made.reshape(block.shape)

    def onto(self, block: Tensor, total: Tensor, own: bool) -> Tensor:
        if self._kernel is None or not total.is_contiguous():
            return total.add_(self(block)) if own else total + self(block)
        out = total if own else torch.empty_like(total)
        whole, old, new = (part.reshape(len(block), *self.diagonal.shape) for part in (block, total, out))
        self._kernel(whole, self.diagonal, self.left, self.right, new, onto=old)
        return out

    def _plain(self, whole: Tensor) -> Tensor:
        whole = whole.to(self.diagonal.dtype)
        made = whole * self.diagonal
        for left, right in zip(self.left, self.right, strict=True):
            made.addcmul_(left, (whole * right).sum(-1, keepdim=True))
        return made
