"""Convolutions and fully connected layers as one thing: sites that read sites through taps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from specxai import native
from specxai.rules import Convolution, LinearNode


@dataclass(frozen=True)
class Sites:
    """A weighted node's geometry: units are (channels, positions), grouped by channel.

    weight   (groups, outputs / groups, inputs / groups, taps)
    shapes   spatial shape of the input and of the output
    lead     units lie (positions, channels) in memory instead, as in a fully connected layer
    """

    weight: Tensor
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    conv: Convolution | None
    lead: bool

    @property
    def groups(self) -> int:
        return self.weight.shape[0]

    @property
    def inputs(self) -> int:
        return self.groups * self.weight.shape[2]

    @property
    def outputs(self) -> int:
        return self.groups * self.weight.shape[1]

    @property
    def taps(self) -> int:
        return self.weight.shape[3]

    def table(self, units: Tensor, channels: int) -> Tensor:
        """Units (flat) as (positions, channels)."""
        return units.reshape(-1, channels) if self.lead else units.reshape(channels, -1).T

    def flat(self, table: Tensor) -> Tensor:
        """The inverse of `table`."""
        return (table if self.lead else table.T).reshape(-1)

    @cached_property
    def reads(self) -> Tensor:
        """(output positions, taps): the input position under each tap, -1 for none."""
        if self.conv is None:
            return _range(_count(self.outer))[:, None]
        return _positions(self.outer, self.inner, *_geometry(self.conv), self.conv.transposed)

    @cached_property
    def feeds(self) -> Tensor:
        """(input positions, taps): the output position that reads it under each tap, -1 for none."""
        if self.conv is None:
            return _range(_count(self.inner))[:, None]
        return _positions(self.inner, self.outer, *_geometry(self.conv), not self.conv.transposed)

    def reach(self, live: Tensor) -> Tensor:
        """Output units (flat) that depend on a live input unit."""
        seen = native.any_neighbour(self._any(live, self.inputs), self.reads)  # (positions, groups)
        return self.flat((seen[:, :, None] & self._used[0]).flatten(1))

    def demand(self, wanted: Tensor) -> Tensor:
        """Input units (flat) that a wanted output unit reads."""
        seen = native.any_neighbour(self._any(wanted, self.outputs), self.feeds)
        return self.flat((seen[:, :, None] & self._used[1]).flatten(1))

    @cached_property
    def _used(self) -> tuple[Tensor, Tensor]:
        """(groups, outputs) and (groups, inputs): has the unit a weight that is not zero?"""
        used = self.weight.ne(0).any(3)
        return used.any(2), used.any(1)

    def _any(self, units: Tensor, channels: int) -> Tensor:
        """(positions, groups): is any unit of the group set there?"""
        return self.table(units, channels).reshape(-1, self.groups, channels // self.groups).any(2)


def sites_of(node: LinearNode, own: torch.Size, shape: torch.Size) -> Sites | None:
    """The node as sites, None where it is neither a plain convolution nor a fully connected layer."""
    if node.dense is not None:
        weight = node.dense.weight.detach()
        return Sites(weight[None, :, :, None], (own.numel() // weight.shape[1],),
                     (shape.numel() // weight.shape[0],), None, True)
    conv = node.conv
    if conv is None or own[0] != 1:
        return None
    weight = conv.weight.detach().flatten(2)
    weight = weight.reshape(conv.groups, -1, *weight.shape[1:])
    if conv.transposed:
        weight = weight.transpose(1, 2)
    return Sites(weight, tuple(own[2:]), tuple(shape[2:]), conv, False)


def _geometry(conv: Convolution) -> tuple[tuple[int, ...], ...]:
    return tuple(conv.weight.shape[2:]), conv.stride, conv.padding, conv.dilation


@lru_cache(maxsize=256)  # the same for every input
def _positions(here: tuple[int, ...], there: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...],
               padding: tuple[int, ...], dilation: tuple[int, ...], inverse: bool) -> Tensor:
    """(positions here, taps): the position there under each tap, -1 for none.

    A convolution's output p reads input p·stride − padding + tap·dilation; `inverse` solves that for p.
    """
    dims = len(here)
    flat, valid = torch.zeros((), dtype=torch.int32), torch.ones((), dtype=torch.bool)
    for axis, (n, m, k) in enumerate(zip(here, there, kernel, strict=True)):
        step = stride[axis]
        place, tap = _range(n)[:, None], _range(k)[None, :] * dilation[axis]
        at = place + padding[axis] - tap if inverse else place * step - padding[axis] + tap
        ok = (at >= 0) & (at < (m * step if inverse else m))
        if inverse:
            ok &= at % step == 0
            at = at // step
        shape = [1] * (2 * dims)
        shape[axis], shape[dims + axis] = n, k
        flat, valid = flat * m + at.reshape(shape), valid & ok.reshape(shape)
    return torch.where(valid, flat, -1).reshape(_count(here), _count(kernel))


def _range(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.int32)


def _count(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())
