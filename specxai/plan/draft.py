"""From linear nodes and live units to stages over rows: the first form of a plan, not yet laid out.

Every value is either rows of its own, written by a stage, or a pick among the rows of others: gates, pooling, views and
concatenation are no stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specxai.graph import Graph
from specxai.plan.arena import Buffer
from specxai.plan.groups import Groups
from specxai.plan.liveness import Map, Structure, ends, terms
from specxai.plan.rows import Mix, Pick, Rows, select
from specxai.plan.sites import Sites
from specxai.plan.stages import Gather, LowRank, Stage, Tap, channel_constant, opaque, per_channel, sum_of
from specxai.plan.tables import count_distinct


@dataclass(frozen=True, eq=False)
class Draft:
    """Stages over rows that are numbered one buffer after the other.

    begin      (buffers + 1,) int32: where each buffer's rows begin
    counts     (stages + 1) of (buffers,): how many rows of each buffer a stage reads; the result's come last
    sources    the row of each unit of the sources, one step after the other; the first buffers are theirs
    at, read   unit `at` of the targets is row `read`, times `scale` (None for ones)
    shared     the buffers that more than one stage writes
    taps       the values whose cotangents are asked for, by where the adjoint passes them
    """

    stages: tuple[Stage, ...]
    buffers: tuple[Buffer, ...]
    begin: Tensor
    counts: tuple[Tensor, ...]
    sources: Tensor
    at: Tensor
    read: Tensor
    scale: Tensor | None
    shared: frozenset[int] = frozenset()
    taps: tuple[Tap, ...] = ()


def draft(graph: Graph, structures: Mapping[int, Structure], path: Sequence[int], live: Mapping[int, Tensor],
          sources: Sequence[int], targets: Sequence[int], rows: Tensor | None, taps: Sequence[int] = ()) -> Draft:
    """The stages of the steps of `path`, which write their live units.

    rows   the only units of the targets that are wanted, numbered one step after the other; None for all
    taps   steps of `path` whose cotangents are asked for: they have rows that no other value shares
    """
    writer = _Writer(graph, structures, live)
    for step in sources:
        writer.units[step] = writer.rows_for(live[step], order_of(graph.shapes[step]), born=-1)
    for step in path:
        writer.add(step)
        if step in taps:
            writer.tap(step)
    return writer.finish(sources, targets, rows)


FLAT = (1, 1)


def order_of(shape: torch.Size) -> tuple[int, int]:
    """(inputs of the network, channels) of a value, whose rows go input by input and position by position."""
    return tuple(shape[:2]) if len(shape) > 3 or (len(shape) == 3 and shape[0] == 1) else FLAT


class _Writer:
    """Goes through the steps in order; `units` says where the units of those behind lie."""

    def __init__(self, graph: Graph, structures: Mapping[int, Structure], live: Mapping[int, Tensor]) -> None:
        self.graph, self.structures, self.live = graph, structures, live
        self.units: dict[int, Rows] = {}
        self.stages: list[Stage] = []
        self.buffers: list[Buffer] = []
        self.shared: set[int] = set()
        self.taps: list[Tap] = []
        self.size = 0

    def add(self, step: int) -> None:
        live, node, structure = self.live[step], self.graph.nodes[step], self.structures[step]
        found = [(self.units[term.input], along) for term, along in terms(node, structure, self.units)]
        if not bool(live.any()):
            self.units[step] = nowhere(len(live))
        elif structure.join is not None:
            sources = [self.units.get(term.input) for term in node.terms]
            self.units[step] = structure.join.of(sources, self.graph.dtype).among(live)
        elif all(isinstance(along, (Pick, Mix)) for _, along in found):
            self.units[step] = self.picked(step, found)
        elif all(isinstance(along, (Sites, Pick, Mix)) for _, along in found):
            self.units[step] = self.products(step, found)
        elif len(found) == 1 and isinstance(found[0][1], Groups):
            self.units[step] = self.low_rank(step, *found[0])
        else:
            inputs = {term.input: self.units[term.input] for term, _ in terms(node, structure, self.units)}
            units = self.own_rows(step)
            shapes = {i: self.graph.shapes[i] for i in inputs}
            self.stages.append(opaque(step, node, inputs, units, shapes, self.graph.shapes[step]))
            self.units[step] = units

    def tap(self, step: int) -> None:
        """Rows of its own for a value that is picked among others': their cotangents are not its own."""
        units, live = self.units[step], self.live[step]
        made = [at for at, buffer in enumerate(self.buffers) if buffer.born >= 0 and
                self.stages[buffer.born].step == step]
        if units.scale is not None or not set(self.buffers_of(units)) <= set(made):
            self.units[step] = self.copied(step, units.among(live), order_of(self.graph.shapes[step]))
        self.taps.append(Tap(step, len(self.stages), self.units[step].row))

    def products(self, step: int, found: Sequence[tuple[Rows, Map]]) -> Rows:
        """Products with weights or held factors, the later ones added to the first; what is only picked is summed
        with them.
        """
        units = None
        for inputs, along in found:
            if isinstance(along, Sites):
                if units is not None:
                    self.shared.update(self.buffers_of(units))
                units = self.gather(step, along, inputs, self.live[step], onto=units)
        picked = [pair for pair in found if not isinstance(pair[1], Sites)]
        return self.picked(step, [(units, Pick(None, None, False)), *picked]) if picked else units

    def gather(self, step: int, sites: Sites, inputs: Rows, live: Tensor, onto: Rows | None) -> Rows:
        inputs = inputs.among(sites.demand(live))
        reads, scale = sites.table(inputs.row, sites.inputs).contiguous(), None
        if inputs.scale is not None:
            table = sites.table(inputs.scale, sites.inputs)
            if channel_constant(table, reads):
                scale = per_channel(table, reads)
            else:
                inputs = self.copied(step, inputs, FLAT if sites.lead else (sites.batch, sites.inputs))
                reads = sites.table(inputs.row, sites.inputs).contiguous()
        units, own = onto, None
        if onto is None:
            units = self.rows_for(live, FLAT if sites.lead else (sites.batch, sites.outputs), born=len(self.stages))
        else:  # it adds, and has no rows of its own
            own = len(self.buffers)
            self.buffers.append(Buffer(self.size, 0, len(self.stages), len(self.stages)))
        writes = sites.table(units.row, sites.outputs).contiguous()
        self.stages.append(Gather(step=step, reads=reads, writes=writes, sites=sites, input_scale=scale, own=own))
        return units

    def low_rank(self, step: int, inputs: Rows, groups: Groups) -> Rows:
        live = self.live[step]
        inputs = inputs.among(groups.demand(live, len(inputs.row)))
        rows = inputs.row[inputs.row >= 0]
        if len(rows) != int(count_distinct(rows, begins(self.buffers)).sum()):  # its adjoint could not write them apart
            inputs = self.copied(step, inputs, FLAT)
        diagonal, right = groups.diagonal, groups.right
        if inputs.scale is not None:
            scale = inputs.scale[groups.units]
            diagonal, right = diagonal * scale, right * scale[:, None]
        units = self.own_rows(step)
        self.stages.append(LowRank(step=step, reads=inputs.row[groups.units], writes=units.row[groups.units],
                                   diagonal=diagonal, left=groups.left, right=right))
        return units

    def picked(self, step: int, found: Sequence[tuple[Rows, Pick | Mix]]) -> Rows:
        """A node of picks and mixes: the rows of others where that is enough, else rows of its own."""
        live = self.live[step]
        if len(found) == 1 and isinstance(found[0][1], Pick):
            inputs, pick = found[0]
            return pick.of(inputs).among(live)
        links = [pick.entries(inputs, live) for inputs, pick in found]
        units = self.own_rows(step)
        self.stages.append(sum_of(step, [(units.row[to], rows, factor) for to, rows, factor in links]))
        return units

    def copied(self, step: int, units: Rows, order: tuple[int, int]) -> Rows:
        """A copy with the scale carried out."""
        at, rows, scale = units.live()
        made = self.rows_for(units.row >= 0, order, born=len(self.stages))
        self.stages.append(sum_of(step, [(made.row[at], rows, scale)]))
        return made

    def buffers_of(self, units: Rows) -> list[int]:
        return count_distinct(units.row, begins(self.buffers)).nonzero().flatten().tolist()

    def own_rows(self, step: int) -> Rows:
        return self.rows_for(self.live[step], order_of(self.graph.shapes[step]), born=len(self.stages))

    def rows_for(self, live: Tensor, order: tuple[int, int], born: int) -> Rows:
        """Rows of their own for the live units, position by position: those of a window lie together."""
        by_position = live.reshape(*order, -1).mT.contiguous()
        number = by_position.view(-1).cumsum(0, dtype=torch.int32)
        count = int(number[-1]) if len(number) else 0
        row = select(by_position, number.view(by_position.shape) + (self.size - 1), -1)
        self.buffers.append(Buffer(self.size, count, born, born))
        self.size += count
        return Rows(row.mT.reshape(-1))

    def finish(self, sources: Sequence[int], targets: Sequence[int], rows: Tensor | None) -> Draft:
        begin = begins(self.buffers)
        parts = [self.units[s] if s in self.units else nowhere(self.graph.shapes[s].numel()) for s in targets]
        scale = None
        if any(part.scale is not None for part in parts):
            scale = torch.cat([torch.ones(len(part.row), dtype=self.graph.dtype, device="cpu")
                               if part.scale is None else part.scale for part in parts])
        wanted = ends(self.graph.shapes, targets, rows)
        units = Rows(torch.cat([part.row for part in parts]), scale).among(torch.cat([wanted[s] for s in targets]))
        at, read, scale = units.live()
        counts = [count_distinct(stage.reads, begin) for stage in self.stages]
        stages = [_noted(stage, count) for stage, count in zip(self.stages, counts, strict=True)]
        return Draft(tuple(stages), tuple(self.buffers), begin, (*counts, count_distinct(read, begin)),
                     torch.cat([self.units[s].row for s in sources]), at, read, scale,
                     frozenset(self.shared), tuple(self.taps))


def _noted(stage: Stage, counts: Tensor) -> Stage:
    """The stage, which knows whether it reads a row twice."""
    if not isinstance(stage, Gather) or int(counts.sum()) == int((stage.reads >= 0).sum()):
        return stage
    return replace(stage, repeats=True)


def begins(buffers: Sequence[Buffer]) -> Tensor:
    """(buffers + 1,) int32: the first row of each, and of one more."""
    size = torch.tensor([b.size for b in buffers], dtype=torch.int32, device="cpu")
    return torch.cat([size.new_zeros(1), size.cumsum(0, dtype=torch.int32)])


def nowhere(units: int) -> Rows:
    """Rows that are all zero."""
    return Rows(torch.full((units,), -1, dtype=torch.int32, device="cpu"))
