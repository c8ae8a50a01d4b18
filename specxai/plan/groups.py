"""Norms and softmax as a diagonal plus a low rank in groups of units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specxai.rules import DiagonalPlusLowRank


@dataclass(frozen=True)
class Groups:
    """z ↦ d z + Σ_r left_r (right_rᵀ z) in each group; numbers lie in the order of `units`, on the CPU.

    units         (groups, n), every unit once
    diagonal      (groups, n)
    left, right   (groups, rank, n)
    """

    units: Tensor
    diagonal: Tensor
    left: Tensor
    right: Tensor

    def reach(self, live: Tensor) -> Tensor:
        return self._along(live, self.right, self.left)

    def demand(self, wanted: Tensor, units: int) -> Tensor:
        return self._along(wanted, self.left, self.right)

    def _along(self, units: Tensor, read: Tensor, written: Tensor) -> Tensor:
        """The units that depend on a set one: by themselves, or through what their group sums."""
        mine = units[self.units]
        seen = (mine[:, None] & read.ne(0)).any(2)  # (groups, rank)
        found = (mine & self.diagonal.ne(0)) | (seen[:, :, None] & written.ne(0)).any(1)
        return units.new_zeros(len(units)).index_put_((self.units.reshape(-1),), found.reshape(-1))


def groups_of(part: DiagonalPlusLowRank, shape: torch.Size, dtype: torch.dtype) -> Groups:
    """The map over a value of this shape, its numbers in the order of the groups."""
    units = part.units.long()

    def ordered(numbers: Tensor) -> Tensor:
        return numbers.detach().cpu().to(dtype).expand(shape).reshape(-1)[units]

    left, right = (torch.stack([ordered(column) for column in side], 1) for side in (part.left, part.right))
    return Groups(units, ordered(part.diagonal), left, right)
