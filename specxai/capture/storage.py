"""Where a tensor's values lie, and what is known of the memory that they lie in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from specxai.capture.program import Ref

aten = torch.ops.aten
Emit = Callable[..., int]  # (overload, args, kwargs) -> step


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

    def gapless(self, axes: Sequence[int] | None = None) -> bool:
        """Do the values lie one after the other, the axes in the order of their strides or in the one given?"""
        step = 1
        for axis in reversed(self.order if axes is None else axes):
            if self.size[axis] != 1 and self.stride[axis] != step:
                return False
            step *= self.size[axis]
        return True

    @property
    def contiguous(self) -> bool:
        return self.gapless(range(len(self.size)))


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

    def is_filled_by(self, place: Place) -> bool:
        return place.numel == self.count and place.gapless()

    def write(self, step: int, place: Place) -> None:
        """The values at `place` are those of `step` from now on."""
        self.version += 1
        self.constant = False
        if self.is_filled_by(place):
            self.whole, self.flat = (step, place), None
            self.writes.clear()
        else:
            self.writes.append((step, place))

    def read(self, place: Place, emit: Emit) -> int:
        """The step of the values at `place`; `emit` adds the calls that take them out of the content."""
        if self.writes and self.writes[-1][1] == place:
            return self.writes[-1][0]
        step, whole = self.whole
        if not self.writes and whole == place:
            return step
        everything = place.contiguous and place.numel == self.count
        if not (everything and whole.contiguous and not self.writes):
            step = self._flatten(emit)
        if everything:
            return emit(aten.reshape.default, (Ref(step), list(place.size)))
        return emit(aten.as_strided.default, (Ref(step), list(place.size), list(place.stride), place.offset))

    def _flatten(self, emit: Emit) -> int:
        """The content as one axis: a value of its own, since the calls that read and write parts go by its memory."""
        if self.flat is None:
            self.flat = self._base(*self.whole, emit)
        for step, place in self.writes:
            self.flat = _scatter(self.flat, step, place, emit)
        if self.writes:
            self.writes.clear()
            self.whole = self.flat, Place((self.count,), (1,), 0)
        return self.flat

    def _base(self, step: int, place: Place, emit: Emit) -> int:
        if self.is_filled_by(place):
            if not place.contiguous:
                step = emit(aten.permute.default, (Ref(step), place.order))
            step = emit(aten.reshape.default, (Ref(step), [-1]))
            return emit(aten.clone.default, (Ref(step),), {"memory_format": torch.contiguous_format})
        zeros = emit(aten.zeros.default, ([self.count],), {"dtype": self.dtype, "device": self.device})
        return _scatter(zeros, step, place, emit)


def _scatter(flat: int, step: int, place: Place, emit: Emit) -> int:
    return emit(aten.as_strided_scatter.default,
                (Ref(flat), Ref(step), list(place.size), list(place.stride), place.offset))


@dataclass(eq=False)
class Known:
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
