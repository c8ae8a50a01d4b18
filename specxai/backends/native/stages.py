"""The stages of a plan: each runs forward and adjoint on one arena, a block of rows [live unit][probe].

Every stage reads some rows and writes others.  In the adjoint the same rows hold cotangents: what was read is written,
or added to where another reader has written before.  What a stage reads is in the arena too, but for the one that reads
the columns of a product where they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from specxai import native
from specxai._once import once
from specxai.backends.native.arena import Buffer
from specxai.backends.native.sites import Sites
from specxai.backends.native.units import Units, select
from specxai.rules import LinearNode

# What merged cells may cost in operations: as outputs they fill the tiles of the kernels; as inputs they help products
# of few columns alone, whose lanes they fill.
SCATTERING, GATHERING = 2.0, 4 / 3


@dataclass(frozen=True)
class Mode:
    """How a product runs.

    rough        with factors of 16 bits
    may_spread   as in `native.GatherGemm`
    """

    rough: bool = False
    may_spread: bool = True


FULL = Mode()


class Link:
    """A sparse map between two sets of rows, entry by entry: out[to] += scale · in[from]."""

    def __init__(self, to: Tensor, source: Tensor, scale: Tensor | None, dtype: torch.dtype) -> None:
        self._to, self._source, self._dtype = to.contiguous(), source.contiguous(), dtype
        self._scale = None if scale is None else scale.to(dtype).contiguous()

    @once
    def forward(self) -> native.RowSum:
        return native.RowSum(to=self._to, source=self._source, scale=self._scale, dtype=self._dtype)

    @once
    def adjoint(self) -> native.RowSum:
        return native.RowSum(to=self._source, source=self._to, scale=self._scale, dtype=self._dtype)


class Stage(ABC):
    """A step of a plan; `relocate` turns its rows into rows of the arena once that is laid out.

    step         the one whose rows are written
    reads        rows, which may repeat, and -1 for none
    writes       rows
    fresh, zero  arena rows (start, stop) to clear before the product forward, and adjoint
    accumulate   the adjoint adds to what other readers have written
    scratch      rows that the adjoint needs for itself, and where they are
    own_rows     of a sum that the stage adds onto, beside those that the sum took over; None where it does not add
    spread       units that a product of few columns may lay out once more
    """

    step: int

    def __init__(self, reads: Tensor, writes: Tensor) -> None:
        self.reads, self.writes = reads.contiguous(), writes.contiguous()
        self.fresh: list[tuple[int, int]] = []
        self.zero: list[tuple[int, int]] = []
        self.accumulate = False
        self.scratch, self.scratch_at, self.spread = 0, 0, 0
        self.own_rows: Buffer | None = None

    def count(self, begin: Tensor) -> Tensor:
        """How many different rows of each buffer are read."""
        return native.count_distinct(self.reads, begin)

    def relocate(self, table: Tensor) -> None:
        """`table[row]` is the row's place in the arena."""
        self.reads, self.writes = native.map_rows(self.reads, table), native.map_rows(self.writes, table)

    @abstractmethod
    def forward(self, source: Tensor, arena: Tensor, probes: int, mode: Mode = FULL) -> None:
        """Write the stage's outputs from the rows of `source`."""

    @abstractmethod
    def adjoint(self, arena: Tensor, source: Tensor, probes: int, mode: Mode = FULL) -> None:
        """Write, or add to, the cotangents of what the stage reads, rows of `source`."""

    @property
    def multiply_adds(self) -> int:
        """Of one probe, forward."""
        return 0


class GatherStage(Stage):
    """A convolution or fully connected layer over live units.

    inputs    the input's units; their scale is constant per channel, or there is one site
    outputs   the output's
    live      how many outputs there are
    """

    def __init__(self, sites: Sites, inputs: Units, outputs: Units) -> None:
        inside = sites.table(inputs.row, sites.inputs)
        outside = sites.table(outputs.row, sites.outputs)
        self._sites, self._repeats, self._packed = sites, False, None
        self._scale: Tensor | None = None
        self._output_scale: Tensor | None = None
        if inputs.scale is not None:
            self._scale = _per_channel(sites.table(inputs.scale, sites.inputs), inside)
        if len(inside) == len(outside) == 1 and sites.groups == 1:
            # Packed once as W[live out, live in].
            live_in, live_out = self._packed = tuple(t[0].ge(0).nonzero().flatten() for t in (inside, outside))
            inside, outside = inside[:, live_in], outside[:, live_out]
        self.live = int((outside >= 0).sum())
        super().__init__(inside, outside)
        self._cells = sites.cells if self._packed is None else None
        self._pairs: int | None = None  # of live units, where merged cells pair more
        sides = [inside.shape, outside.shape]
        if self._cells is not None and self._cells.cost <= GATHERING:
            fine = 0 if sites.reads_fine else 1
            cells, members = self._cells.members.shape
            sides[fine] = cells, members * sides[fine][1]
        pitches = [(positions, native.pitch_of(channels // sites.groups)) for positions, channels in sides]
        self.spread = max(positions * sites.groups * pitch if pitch % native.LINE == 0 else 0
                          for positions, pitch in pitches)

    def count(self, begin: Tensor) -> Tensor:
        counts, live = super().count(begin), int((self.reads >= 0).sum())
        self._repeats = int(counts.sum()) < live
        self.scratch = live if self._repeats else 0
        return counts

    def _weight(self) -> Tensor:
        """(groups, outputs, inputs, taps), with what the inputs are scaled by."""
        weight = self._sites.weight
        if self._scale is not None:
            weight = weight * self._scale.reshape(self._sites.groups, 1, -1, 1)
        if self._packed is not None:
            live_in, live_out = self._packed
            weight = weight[:, live_out][:, :, live_in]
        if self._output_scale is not None:
            weight = weight * self._output_scale.reshape(self._sites.groups, -1, 1, 1)
        return weight

    def output_scale(self, rows: Tensor, scale: Tensor) -> Tensor | None:
        """(width,) where the scales of the written rows are constant per channel, so that the weights can take them."""
        by_row = scale.new_ones(1 + int(rows.max()))
        by_row[rows.long()] = scale
        table = by_row[self.writes.long()]
        return _per_channel(table, self.writes) if channel_constant(table, self.writes) else None

    def scale_outputs(self, scale: Tensor) -> None:
        """Write the rows times what `output_scale` found."""
        self._output_scale = scale

    @once
    def _forward(self) -> native.GatherGemm:
        weight = self._weight().permute(0, 1, 3, 2).flatten(0, 1)
        return self._made(self.reads, self.writes, weight, adjoint=False)

    @once
    def _adjoint(self) -> tuple[native.GatherGemm, Link | None]:
        """The stage, and how its results fold where an input is read twice."""
        weight, inside, fold = self._weight().permute(0, 2, 3, 1).flatten(0, 1), self.reads, None
        if self._repeats:  # a pooling winner of two windows: each its own row first, then their sum
            inside = torch.full_like(inside, -1)
            live = self.reads >= 0
            rows = torch.arange(self.scratch, dtype=torch.int32, device="cpu") + self.scratch_at
            inside[live] = rows
            fold = Link(rows, self.reads[live], None, weight.dtype)
        stage = self._made(self.writes, inside, weight, adjoint=True)
        if "_forward" in self.__dict__:
            del self.reads, self.writes  # the stages have tables of their own
        return stage, fold

    def _made(self, inside: Tensor, outside: Tensor, weight: Tensor, adjoint: bool) -> native.GatherGemm:
        """weight (outputs, taps, depth)."""
        sites, cells = self._sites, self._cells
        neighbours, across = (sites.feeds, sites.inner[-1]) if adjoint else (sites.reads, sites.outer[-1])
        scatters = sites.reads_fine == adjoint
        if cells is not None and cells.cost <= (SCATTERING if scatters else GATHERING):
            if not adjoint:
                self._pairs = _pairs(inside, outside, neighbours)
            if scatters:
                outside, neighbours, weight = cells.table(outside), cells.scattering, cells.of_outputs(weight)
                across = cells.across
            else:
                inside, neighbours, weight = cells.table(inside), cells.gathering, cells.of_inputs(weight)
        return native.GatherGemm(inside=inside.contiguous(), outside=outside.contiguous(), neighbours=neighbours,
                                 weight=weight, groups=sites.groups, across=across)

    def forward(self, source: Tensor, arena: Tensor, probes: int, mode: Mode = FULL) -> None:
        self._forward.run(source, arena, self.own_rows is not None, rough=mode.rough, may_spread=mode.may_spread)

    def adjoint(self, arena: Tensor, source: Tensor, probes: int, mode: Mode = FULL) -> None:
        stage, fold = self._adjoint
        if fold is None:
            stage.run(arena, source, self.accumulate, rough=mode.rough, may_spread=mode.may_spread)
        else:
            stage.run(arena, arena, rough=mode.rough, may_spread=mode.may_spread)
            fold.adjoint.run(arena, source, probes, self.accumulate)

    @property
    def multiply_adds(self) -> int:
        made = self._forward
        return made.multiply_adds if self._pairs is None else self._pairs


class LinkStage(Stage):
    """Rows summed and scaled: residual adds, and gates that no weight can take."""

    def __init__(self, entries: list[tuple[Tensor, Tensor, Tensor | None]], dtype: torch.dtype) -> None:
        writes = torch.cat([to for to, _, _ in entries])
        super().__init__(torch.cat([source for _, source, _ in entries]), writes)
        self.entries = entries  # until the rows are those of the arena
        self._scale, self._dtype = _together(entries, dtype), dtype

    def relocate(self, table: Tensor) -> None:
        super().relocate(table)
        self.entries = []

    @once
    def _link(self) -> Link:
        return Link(self.writes, self.reads, self._scale, self._dtype)

    def forward(self, source: Tensor, arena: Tensor, probes: int, mode: Mode = FULL) -> None:
        self._link.forward.run(source, arena, probes)

    def adjoint(self, arena: Tensor, source: Tensor, probes: int, mode: Mode = FULL) -> None:
        self._link.adjoint.run(arena, source, probes, self.accumulate)


class DenseStage(Stage):
    """A node without a stage of its own: rows spread to whole values, the reference's term, live rows taken back."""

    def __init__(self, node: LinearNode, inputs: dict[int, Units], outputs: Units, shapes: dict[int, torch.Size],
                 shape: torch.Size, dtype: torch.dtype) -> None:
        self._terms = [term for term in node.terms if term.input in inputs]
        self._shapes, self._shape, self._dtype = shapes, shape, dtype
        self._inputs = [inputs[term.input].live() for term in self._terms]
        self._at, rows, _ = outputs.live()
        super().__init__(torch.cat([rows for _, rows, _ in self._inputs]), rows)

    @once
    def _into(self) -> list[Link]:
        parts = self.reads.split([len(at) for at, _, _ in self._inputs])
        return [Link(at.int(), rows, scale, self._dtype)
                for (at, _, scale), rows in zip(self._inputs, parts, strict=True)]

    @once
    def _out(self) -> Link:
        return Link(self.writes, self._at.int(), None, self._dtype)

    def forward(self, source: Tensor, arena: Tensor, probes: int, mode: Mode = FULL) -> None:
        total = None
        for term, link in zip(self._terms, self._into, strict=True):
            own = self._shapes[term.input]
            dense = arena.new_zeros(own.numel(), probes)
            link.forward.run(source, dense, probes)
            part = term.apply(dense.T.reshape(probes, *own))
            total = part if total is None else total + part
        self._out.forward.run(total.reshape(probes, -1).T.contiguous(), arena, probes)

    def adjoint(self, arena: Tensor, source: Tensor, probes: int, mode: Mode = FULL) -> None:
        dense = arena.new_zeros(self._shape.numel(), probes)
        self._out.adjoint.run(arena, dense, probes)
        block = dense.T.reshape(probes, *self._shape)
        for term, link in zip(self._terms, self._into, strict=True):
            part = term.adjoint(block).reshape(probes, -1).T.contiguous()
            link.adjoint.run(part, source, probes, self.accumulate)


def channel_constant(table: Tensor, rows: Tensor) -> bool:
    """Is the scale (positions, channels) the same at every live position of a channel?"""
    live = rows >= 0
    low = select(live, table, torch.inf).amin(0)
    high = select(live, table, -torch.inf).amax(0)
    return bool((high <= low).all())


def _per_channel(table: Tensor, rows: Tensor) -> Tensor:
    return select(rows >= 0, table, -torch.inf).amax(0).nan_to_num(neginf=0.0)


def _pairs(inside: Tensor, outside: Tensor, neighbours: Tensor) -> int:
    """Live outputs and the live inputs that each of them reads."""
    inputs = torch.cat([(inside >= 0).sum(1), inside.new_zeros(1)])[neighbours].sum(1)  # -1 is the zero
    return int(inputs @ (outside >= 0).sum(1))


def _together(entries: list[tuple[Tensor, Tensor, Tensor | None]], dtype: torch.dtype) -> Tensor | None:
    if all(scale is None for _, _, scale in entries):
        return None
    return torch.cat([torch.ones(len(to), dtype=dtype, device="cpu") if scale is None else scale
                      for to, _, scale in entries])
