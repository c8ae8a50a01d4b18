"""A diagonal plus a low rank in groups of neighbouring units, of blocks (k, *S): in one pass on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.native.triton import kernel_of


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
            self._kernel(self._given(whole), self.diagonal, self.left, self.right, made)
        else:
            made = self._plain(whole).to(self.dtype)
        return made.reshape(block.shape)

    def onto(self, block: Tensor, total: Tensor, own: bool) -> Tensor:
        if self._kernel is None or not total.is_contiguous() or total.dtype.itemsize > 4:
            return total.add_(self(block)) if own else total + self(block)
        out = total if own else torch.empty_like(total)
        whole, old, new = (part.reshape(len(block), *self.diagonal.shape) for part in (block, total, out))
        self._kernel(self._given(whole), self.diagonal, self.left, self.right, new, onto=old)
        return out

    def _given(self, whole: Tensor) -> Tensor:
        return whole if whole.dtype.itemsize <= self.diagonal.itemsize else whole.to(self.diagonal.dtype)

    def _plain(self, whole: Tensor) -> Tensor:
        whole = whole.to(self.diagonal.dtype)
        made = whole * self.diagonal
        for left, right in zip(self.left, self.right, strict=True):
            made.addcmul_(left, (whole * right).sum(-1, keepdim=True))
        return made
