"""Where a tensor's values lie, and what is known of the memory that they lie in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Where a tensor's values lie in its storage."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.size)

    @property
    def order(self) -> list[int]:
        """The axes by falling stride."""
        return sorted(range(len(self.size)), key=lambda axis: (-self.stride[axis], axis))

    def dense(self, axes: Sequence[int] | None = None) -> bool:
        """Do the values lie one after the other, the axes in the order of their strides or in the one given?"""
        step = 1
        for axis in reversed(self.order if axes is None else axes):
            if self.size[axis] != 1 and self.stride[axis] != step:
                return False
            step *= self.size[axis]
        return True

    @property
    def contiguous(self) -> bool:
        return self.dense(range(len(self.size)))


@dataclass(eq=False)
class Storage:
    """The content of one storage: a value that fills it, and the writes to parts of it since.

    whole    (step, place) of a value that holds the whole storage, or of all that is known of it
    flat     the step of the content as one axis, where that was needed
    """

    count: int
    dtype: torch.dtype
    device: torch.device
    whole: tuple[int, Place]
    constant: bool
    flat: int | None = None
    writes: list[tuple[int, Place]] = field(default_factory=list)
    version: int = 0


@dataclass(eq=False)
class Held:
    """A tensor of the run and the step of its value, as of a version of its storage.

    inside   made in the forward() of an autograd.Function, where autograd is off and nothing is stopped
    """

    tensor: Tensor
    step: int
    storage: Storage | None
    version: int
    inside: bool


def address(tensor: Tensor) -> int:
    """Where a tensor's storage begins; 0 for one without."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return 0
    return tensor.untyped_storage().data_ptr()


def place_of(tensor: Tensor) -> Place:
    return Place(tuple(tensor.size()), tuple(tensor.stride()), tensor.storage_offset())
