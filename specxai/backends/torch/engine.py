"""Lowers stages to a few calls of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specxai._once import once
from specxai.backends.engine import Executable
from specxai.backends.opaque import OpaqueTerms
from specxai.plan import Gather, LowRank, Stage, Sum

CHUNK = 1 << 22  # numbers that are held for the positions of one product


class TorchEngine:
    """Every stage in plain PyTorch, in full precision."""

    name = "torch"
    has_rough = False

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.grade = str(dtype).removeprefix("torch.")

    def lower(self, stage: Stage) -> Executable:
        if isinstance(stage, Gather):
            return GatherProducts(stage, self.device)
        if isinstance(stage, Sum):
            return RowSums(stage, self.dtype, self.device)
        if isinstance(stage, LowRank):
            return GroupProducts(stage, self.dtype, self.device)
        return OpaqueTerms(stage, self.lower)

    def graphs(self) -> None:
        return None

    def stride_of(self, probes: int) -> int:
        return probes

    def empty(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, width, dtype=self.dtype, device=self.device)

    def columns(self, block: Tensor) -> Tensor:
        return block.contiguous()

    def mode(self, probes: int, rough: bool, rows: int, work: Sequence[Executable]) -> None:
        return None

    def room(self, columns: int, rows: int, work: Sequence[Executable]) -> int:
        return rows * columns

    def column_cost(self, columns: int, rough: bool) -> float:
        return max(1.0, 16 / columns)


class GatherProducts:
    """Runs a `Gather` stage: the live positions' inputs gathered, one product for all of them, rows written."""

    def __init__(self, stage: Gather, device: torch.device) -> None:
        self._stage, self._device = stage, device

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        _gather(self._forward, inside, outside, self._stage.adds)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        _gather(self._adjoint, outside, inside, self._stage.place.accumulate)

    @once
    def multiply_adds(self) -> int:
        return self._stage.multiply_adds()

    @once
    def kept(self) -> int:
        stage = self._stage
        pairs = stage.sites.taps * (len(stage.reads) + len(stage.writes))
        tables = stage.reads.numel() + stage.writes.numel() + pairs
        return 4 * tables + 40 * (int((stage.reads >= 0).sum()) + stage.live)

    def scratch(self, stride: int) -> int:
        stage, sites = self._stage, self._stage.sites
        ends = (len(stage.reads), sites.inputs), (len(stage.writes), sites.outputs)
        return max(_held(*one, *other, sites.taps, stride) for one, other in (ends, ends[::-1]))

    @once
    def _forward(self) -> _Gathering:
        stage = self._stage
        return _Gathering(stage.reads, stage.writes, stage.sites.reads, stage.weight(), self._device)

    @once
    def _adjoint(self) -> _Gathering:
        stage = self._stage
        return _Gathering(stage.writes, stage.reads, stage.sites.feeds, stage.weight().transpose(1, 2), self._device)


class _Gathering:
    """Tables of one direction, on the device.

    read            (inputs that are live,) rows, and `at`, their places in a table (inputs, input positions + 1) whose
                    last position is the zero that a missing neighbour finds
    near            (taps, live output positions) input positions
    write           (outputs that are live,) rows, and `site`, `channel`, their places among the live output positions
    begin           (live output positions + 1,) where the live outputs of each begin among those, on the CPU
    weight          (groups, outputs, inputs · taps)
    """

    def __init__(self, inside: Tensor, outside: Tensor, neighbours: Tensor, weight: Tensor,
                 device: torch.device) -> None:
        self.positions, (groups, outputs, inputs, taps) = len(inside), weight.shape
        self.weight = weight.reshape(groups, outputs, inputs * taps).to(device)
        position, channel = (inside >= 0).nonzero(as_tuple=True)
        self.read = inside[position, channel].long().to(device)
        self.at = (channel * (len(inside) + 1) + position).to(device)
        alive = (outside >= 0).any(1).nonzero().flatten()
        near = neighbours[alive].T
        self.near = torch.where(near < 0, len(inside), near).to(device)
        written = outside[alive]
        site, channel = (written >= 0).nonzero(as_tuple=True)
        self.write = written[site, channel].long().to(device)
        self.begin = torch.searchsorted(site, torch.arange(len(alive) + 1, device="cpu"))
        self.site, self.channel = site.to(device), channel.to(device)


def _gather(tables: _Gathering, inside: Tensor, outside: Tensor, add: bool) -> None:
    """outside[write] (+)= W inside[read], position by position, some at a time."""
    (groups, outputs, depth), (taps, sites), probes = tables.weight.shape, tables.near.shape, inside.shape[1]
    inputs = groups * depth // taps
    whole = inside.new_zeros(inputs * (tables.positions + 1), probes)
    whole.index_copy_(0, tables.at, inside.index_select(0, tables.read))
    whole = whole.view(inputs, tables.positions + 1, probes)
    some = max(1, CHUNK // max(1, _site(inputs, groups * outputs, taps) * probes))
    if not add:
        outside.index_fill_(0, tables.write, 0)
    for start in range(0, sites, some):
        near = tables.near[:, start:start + some]
        first, last = tables.begin[[start, start + near.shape[1]]].tolist()
        read = whole.index_select(1, near.flatten()).view(groups, depth, near.shape[1] * probes)
        made = torch.matmul(tables.weight, read).view(groups * outputs, near.shape[1], probes)
        made = made[tables.channel[first:last], tables.site[first:last] - start]
        # A row may come twice: a pooling winner of two windows, backwards.
        outside.index_add_(0, tables.write[first:last], made)


def _site(inputs: int, outputs: int, taps: int) -> int:
    """Numbers a probe that are held for one output position: what it reads, what is made of it, and where that goes."""
    return inputs * taps + 4 * outputs


def _held(positions: int, inputs: int, sites: int, outputs: int, taps: int, probes: int) -> int:
    """Numbers that `_gather` holds beside its blocks."""
    whole, site = (positions + 1) * inputs * probes, _site(inputs, outputs, taps) * probes
    return whole + max(whole, min(sites * site, max(CHUNK, site)))


class GroupProducts:
    """Runs a `LowRank` stage: the groups' rows gathered, two products for all of them, rows written."""

    def __init__(self, stage: LowRank, dtype: torch.dtype, device: torch.device) -> None:
        self._accumulate, rank = stage.place.accumulate, stage.left.shape[1]
        self.kept = stage.reads.numel() * (32 + (1 + 2 * rank) * dtype.itemsize)
        self.multiply_adds = (1 + 2 * rank) * int((stage.reads >= 0).sum())
        self._diagonal, self._left, self._right = (
            part.to(device, dtype) for part in (stage.diagonal[..., None], stage.left, stage.right))
        self._reads, self._writes = (_places(rows, device) for rows in (stage.reads, stage.writes))
        self._shape = stage.reads.shape

    def scratch(self, stride: int) -> int:
        return 4 * self._shape.numel() * stride

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        rows, at = self._writes
        outside[rows] = self._apply(inside, self._reads, self._left, self._right)[at]

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        rows, at = self._reads
        made = self._apply(outside, self._writes, self._right, self._left)[at]
        if self._accumulate:
            inside.index_add_(0, rows, made)
        else:
            inside[rows] = made

    def _apply(self, source: Tensor, places: tuple[Tensor, Tensor], left: Tensor, right: Tensor) -> Tensor:
        rows, at = places
        whole = source.new_zeros(self._shape.numel(), source.shape[1])
        whole[at] = source[rows]
        whole = whole.view(*self._shape, -1)
        made = torch.baddbmm(whole * self._diagonal, left.mT, torch.bmm(right, whole))
        return made.flatten(0, 1)


def _places(rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """(rows that are live, their places in the flat table)."""
    at = (rows >= 0).flatten().nonzero().flatten()
    return rows.flatten()[at].long().to(device), at.to(device)


class RowSums:
    """Runs a `Sum` stage."""

    multiply_adds = 0

    def __init__(self, stage: Sum, dtype: torch.dtype, device: torch.device) -> None:
        self._reads, self._writes = (rows.long().to(device) for rows in (stage.reads, stage.writes))
        scale = stage.scale(dtype)
        self._scale = None if scale is None else scale.to(device)[:, None]
        self._accumulate = stage.place.accumulate
        self.kept = (16 if scale is None else 16 + dtype.itemsize) * len(stage.reads)

    def scratch(self, stride: int) -> int:
        return len(self._reads) * stride

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        self._add(inside, self._reads, outside, self._writes, False)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        self._add(outside, self._writes, inside, self._reads, self._accumulate)

    def _add(self, source: Tensor, rows: Tensor, to: Tensor, at: Tensor, accumulate: bool) -> None:
        part = source.index_select(0, rows)
        if self._scale is not None:
            part *= self._scale
        if not accumulate:
            to.index_fill_(0, at, 0)
        to.index_add_(0, at, part)
