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

CHUNK = 1 << 24  # numbers of one gathered block


class TorchEngine:
    """Every stage in plain PyTorch, in full precision."""

    name = "torch"
    has_rough = False

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device

    def lower(self, stage: Stage) -> Executable:
        if isinstance(stage, Gather):
            return GatherProducts(stage, self.device)
        if isinstance(stage, Sum):
            return RowSums(stage, self.dtype, self.device)
        if isinstance(stage, LowRank):
            return GroupProducts(stage, self.dtype, self.device)
        return OpaqueTerms(stage, self.lower)

    def stride_of(self, probes: int) -> int:
        return probes

    def empty(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, width, dtype=self.dtype, device=self.device)

    def columns(self, block: Tensor) -> Tensor:
        return block.contiguous()

    def mode(self, probes: int, rough: bool, rows: int, work: Sequence[Executable]) -> None:
        return None

    def room(self, columns: int, rows: int, work: Sequence[Executable]) -> int:
        widest = max((item.gathered for item in work if hasattr(item, "gathered")), default=0)
        return (rows + widest) * columns

    def column_cost(self, columns: int, rough: bool) -> float:
        return max(1.0, 16 / columns)


class GatherProducts:
    """Runs a `Gather` stage: the live positions' inputs gathered, one product for all of them, rows written.

    gathered   numbers a probe that it holds beside the arena
    """

    def __init__(self, stage: Gather, device: torch.device) -> None:
        self._stage, self._device = stage, device
        sites = stage.sites
        # Gathered inputs, their products, and one side's whole values.
        self.gathered = max(side * channels for side, channels in ((len(stage.reads), sites.inputs),
                                                                   (len(stage.writes), sites.outputs)))
        self.gathered += 2 * CHUNK // 64

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        _gather(self._forward, inside, outside, self._stage.adds)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        _gather(self._adjoint, outside, inside, self._stage.place.accumulate)

    @once
    def multiply_adds(self) -> int:
        return self._stage.multiply_adds()

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

    read      (inputs that are live,) rows, and `at`, their places in a table (input positions + 1, inputs) whose last
              position is the zero that a missing neighbour finds
    near      (live output positions, taps) input positions
    write     (outputs that are live,) rows, and `of`, their places in (live output positions, outputs)
    weight    (groups, outputs, taps · inputs)
    """

    def __init__(self, inside: Tensor, outside: Tensor, neighbours: Tensor, weight: Tensor,
                 device: torch.device) -> None:
        groups, outputs, inputs, taps = weight.shape
        self.positions, self.groups, self.inputs = len(inside), groups, inputs
        self.weight = weight.transpose(2, 3).reshape(groups, outputs, taps * inputs).to(device)
        at = (inside >= 0).flatten().nonzero().flatten()
        self.read, self.at = inside.flatten()[at].long().to(device), at.to(device)
        alive = (outside >= 0).any(1).nonzero().flatten()
        near = neighbours[alive].long()
        self.near = torch.where(near < 0, len(inside), near).to(device)
        written = outside[alive]
        of = (written >= 0).flatten().nonzero().flatten()
        self.write, self.of = written.flatten()[of].long().to(device), of.to(device)
        # Where the live outputs of each position begin among `of`.
        self.begin = torch.searchsorted(of, torch.arange(len(alive) + 1, device="cpu") * outside.shape[1]).tolist()
        self.width = outside.shape[1]


def _gather(tables: _Gathering, inside: Tensor, outside: Tensor, add: bool) -> None:
    """outside[write] (+)= W inside[read], position by position, some at a time."""
    probes, g, c = inside.shape[1], tables.groups, tables.inputs
    whole = inside.new_zeros((tables.positions + 1) * g * c, probes)
    whole[tables.at] = inside[tables.read]
    whole = whole.view(tables.positions + 1, g, c, probes)
    taps = tables.near.shape[1]
    some = max(1, CHUNK // max(1, g * c * taps * probes))
    if not add:
        outside.index_fill_(0, tables.write, 0)
    for start in range(0, len(tables.near), some):
        near = tables.near[start:start + some]
        read = whole[near].transpose(1, 2).reshape(len(near), g, taps * c, probes)
        made = torch.matmul(tables.weight, read).reshape(-1, probes)  # (positions · outputs, probes)
        first, last = tables.begin[start], tables.begin[start + len(near)]
        rows, made = tables.write[first:last], made[tables.of[first:last] - start * tables.width]
        outside.index_add_(0, rows, made)  # a row may come twice: a pooling winner of two windows, backwards


class GroupProducts:
    """Runs a `LowRank` stage: the groups' rows gathered, two products for all of them, rows written.

    gathered   numbers a probe that it holds beside the arena
    """

    def __init__(self, stage: LowRank, dtype: torch.dtype, device: torch.device) -> None:
        self._accumulate, rank = stage.place.accumulate, stage.left.shape[1]
        self.gathered = 3 * stage.reads.numel()
        self.multiply_adds = (1 + 2 * rank) * int((stage.reads >= 0).sum())
        self._diagonal, self._left, self._right = (
            part.to(device, dtype) for part in (stage.diagonal[..., None], stage.left, stage.right))
        self._reads, self._writes = (_places(rows, device) for rows in (stage.reads, stage.writes))
        self._shape = stage.reads.shape

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

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        self._add(inside, self._reads, outside, self._writes, False)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        self._add(outside, self._writes, inside, self._reads, self._accumulate)

    def _add(self, source: Tensor, rows: Tensor, to: Tensor, at: Tensor, accumulate: bool) -> None:
        part = source[rows] if self._scale is None else source[rows] * self._scale
        if not accumulate:
            to.index_fill_(0, at, 0)
        to.index_add_(0, at, part)
