"""A plan: the stages between sources and targets over live units, laid out in one arena, with its peak memory known.

Liveness first: forward, which units a source reaches; backward, which of those a target wants.  Then every value is
either rows of its own, written by a stage, or a pick among the rows of others (gates, pooling, views, concatenation).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from specxai import native
from specxai._once import once
from specxai.backends.native.arena import Buffer, lay_out
from specxai.backends.native.live import Structure, ends, terms
from specxai.backends.native.residual import Residuals
from specxai.backends.native.sites import FEW_CHANNELS
from specxai.backends.native.stages import DenseStage, GatherStage, Link, LinkStage, Mode, Stage, channel_constant
from specxai.backends.native.units import Pick, Units, select
from specxai.rules import LinearNode

WIDE = 64  # columns that a product of many mostly has
KEPT_ARENAS = 2  # idle ones, whatever the number of threads that had one each
# Time of a column of a product of so many, over its live operations at the multiply-add peak: VGG11-BN's convolutions
# in a solver, forward and adjoint, two cores with AVX-512.  Below 16 the lanes are units, of which half are dead; rough
# products pack the weights of each position for as many columns as there are.
COSTS = {1: 6.7, 2: 3.6, 4: 2.3, 8: 2.8, 16: 1.75, 32: 1.25, 64: 1.1}
ROUGH_COSTS = {16: 1.35, 32: 0.95, 64: 0.75}
MOST_ROOM = 1 << 30  # bytes that an arena may have room for before they are needed


class Plan:
    """Products of the map between steps: `matmat` (n, k) -> (m, k), `rmatmat` (m, k) -> (n, k).

    `rough` products multiply integers of 12 and 13 bits, where the processor does that at twice the rate; a few
    columns, fully connected layers of one position and small stages are in full precision.

    columns, rows   the only live units of the sources and targets (flat, one step after the other), None for all
    """

    backend = "native"

    def __init__(self, nodes: Mapping[int, LinearNode], shapes: Mapping[int, torch.Size],
                 structures: Mapping[int, Structure], path: Sequence[int], live: Mapping[int, Tensor],
                 sources: Sequence[int], targets: Sequence[int], dtype: torch.dtype, columns: Tensor | None = None,
                 rows: Tensor | None = None, pool: list[Tensor] | None = None) -> None:
        self._nodes, self._shapes, self._structures, self._path = nodes, shapes, structures, list(path)
        self._sources, self._targets, self.dtype = list(sources), list(targets), dtype
        self._columns, self._rows = columns, rows
        self._live = live
        self._buffers: list[Buffer] = []
        self._stages: list[Stage] = []
        self._units: dict[int, Units] = {}
        self._size = 0
        self.has_rough = dtype is torch.float32 and native.has_rough()
        self._build()
        self.arena_rows = self._lay_out()
        self._spread = max((stage.spread for stage in self._stages), default=0)
        self._pool = [] if pool is None else pool
        del self._live, self._units

    # -- products ---------------------------------------------------------------------------------------------------

    def matmat(self, X: Tensor, rough: bool = False) -> Tensor:
        X = X if native.is_columns(X) else X.contiguous()
        out = native.empty(self._count(self._targets, self._rows), X.shape[1], dtype=self.dtype)
        if not self._collects_all:
            out.zero_()
        self._forward(X, out, self._mode(X.shape[1], rough))
        return out

    def rmatmat(self, Y: Tensor, rough: bool = False) -> Tensor:
        Y = Y if native.is_columns(Y) else Y.contiguous()
        out = native.empty(self._count(self._sources, self._columns), Y.shape[1], dtype=self.dtype)
        if not self._harvests_all:
            out.zero_()
        self._adjoint(Y, out, self._mode(Y.shape[1], rough))
        return out

    def _mode(self, probes: int, rough: bool) -> Mode:
        stride = native.stride_of(probes)
        return Mode(rough) if stride >= native.PROBE_UNIT else Mode(may_spread=self._may_spread(stride))

    def _may_spread(self, stride: int) -> bool:
        """May a narrow run lay its inputs out once more without taking more memory than a wide one?"""
        return stride * (self.arena_rows + self._spread) <= native.PROBE_UNIT * self.arena_rows

    def _forward(self, X: Tensor, out: Tensor, mode: Mode) -> None:
        probes = X.shape[1]
        with self._arena(probes) as arena:
            source = self._source_of(X, arena)
            if source is not X:
                self._seed.run(X, source, probes)
            for stage in self._stages:
                _clear(arena, stage.fresh)
                stage.forward(source if stage is self._reader else arena, arena, probes, mode)
            self._collect.forward.run(arena, out, probes)

    def _adjoint(self, Y: Tensor, out: Tensor, mode: Mode) -> None:
        probes = Y.shape[1]
        with self._arena(probes) as arena:
            source = self._source_of(out, arena)
            _clear(arena, self._collect_zero)
            self._collect.adjoint.run(Y, arena, probes)
            for stage in reversed(self._stages):
                _clear(arena, stage.zero)
                stage.adjoint(arena, source if stage is self._reader else arena, probes, mode)
            _clear(arena, self._seed_zero)
            if source is not out:
                self._harvest.run(source, out, probes)

    def _source_of(self, columns: Tensor, arena: Tensor) -> Tensor:
        """The block whose rows are the source's: the arena, or what the reader reads.

        That is the product's own columns where they are a block, and otherwise their place in the arena.
        """
        if self._reader is None:
            return arena
        if columns.shape[1] == arena.shape[1] and columns.is_contiguous():
            return columns
        place = self._buffers[0].place
        return arena[place:place + self._buffers[0].size]

    def column_cost(self, columns: int, rough: bool = False) -> float:
        """As of an operator: what was measured at the widest of COSTS that is no wider."""
        if native.simd_level() == "scalar":
            return max(1.0, 16 / columns)
        table = ROUGH_COSTS if rough and self.has_rough and columns >= min(ROUGH_COSTS) else COSTS
        return table[max(width for width in table if width <= columns)]

    def product_bytes(self, columns: int) -> int:
        """Bytes that a product holds, block and result included."""
        ends = self._count(self._sources, self._columns) + self._count(self._targets, self._rows)
        most = native.stride_of(columns)
        # The most of any narrower run, so that bytes never fall as columns are added.
        narrow = [s for s in (1, 2, 4, 8) if s <= most and self._may_spread(s)]
        blocks = max(self.arena_rows * most, (self.arena_rows + self._spread) * max(narrow, default=0))
        return self.dtype.itemsize * (blocks + ends * columns)

    @once
    def flops(self) -> int:
        """Operations of one column's product over live units, a multiply-add counted as two."""
        return 2 * sum(stage.multiply_adds for stage in self._stages)

    def costs(self) -> list[tuple[int, int, int]]:
        """(step, live units, operations of one column) of every weighted node, in order."""
        return [(s.step, s.live, 2 * s.multiply_adds) for s in self._stages if isinstance(s, GatherStage)]

    @contextmanager
    def _arena(self, probes: int) -> Iterator[Tensor]:
        """A block from the pool, which spares a product the page faults; two threads never share one."""
        stride = native.stride_of(probes)
        needed = self.arena_rows * stride
        try:
            memory = self._pool.pop()
        except IndexError:  # not asked before: another thread may take the last one
            memory = None
        if memory is None or memory.numel() < needed:
            memory = None  # gone before the larger one comes
            # Room for the wide product that may follow, whose pages are then half there: unused, it takes no memory.
            wide = self.arena_rows * WIDE
            roomy = needed < wide <= MOST_ROOM // self.dtype.itemsize
            memory = native.empty(wide if roomy else needed, dtype=self.dtype)
        try:
            yield memory[:needed].view(-1, stride)
        finally:
            if len(self._pool) < KEPT_ARENAS:
                self._pool.append(memory)

    # -- stages -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        for step in self._sources:
            self._units[step] = self._rows_for(self._live[step], self._channels(step), born=-1)
        for step in self._path:
            live, shape = self._live[step], self._shapes[step]
            structure = self._structures[step]
            inputs = {term.input: self._units[term.input]
                      for term, _ in terms(self._nodes[step], structure, self._units)}
            if not bool(live.any()):
                self._units[step] = Units(torch.full((shape.numel(),), -1, dtype=torch.int32, device="cpu"))
            elif structure.sites is not None:
                self._units[step] = self._gather(step, next(iter(inputs.values())), live)
            elif structure.join is not None:
                sources = [inputs.get(term.input) for term in self._nodes[step].terms]
                self._units[step] = structure.join.of(sources, self.dtype).among(live)
            elif all(pick is not None for pick in structure.picks):
                self._units[step] = self._picked(step, live)
            else:
                units = self._rows_for(live, self._channels(step), born=len(self._stages))
                shapes = {i: self._shapes[i] for i in inputs}
                self._add(step, DenseStage(self._nodes[step], inputs, units, shapes, shape, self.dtype))
                self._units[step] = units

    def _gather(self, step: int, inputs: Units, live: Tensor) -> Units:
        sites = self._structures[step].sites
        inputs = inputs.among(sites.demand(live))
        if inputs.scale is not None:
            table = sites.table(inputs.row, sites.inputs)
            if not channel_constant(sites.table(inputs.scale, sites.inputs), table):
                inputs = self._copied(step, inputs, 1 if sites.lead else sites.inputs)
        units = self._rows_for(live, 1 if sites.lead else sites.outputs, born=len(self._stages))
        self._add(step, GatherStage(sites, inputs, units))
        return units

    def _picked(self, step: int, live: Tensor) -> Units:
        """A node of picks and mixes: the rows of others where that is enough, else rows of its own."""
        found = terms(self._nodes[step], self._structures[step], self._units)
        if all(isinstance(pick, Pick) for _, pick in found):
            parts = [pick.of(self._units[term.input]).among(live) for term, pick in found]
            if len(parts) == 1:
                return parts[0]
        units = self._rows_for(live, self._channels(step), born=len(self._stages))
        entries = []
        for term, pick in found:
            to, rows, factor = pick.entries(self._units[term.input], live)
            entries.append((units.row[to], rows, factor))
        self._add(step, LinkStage(entries, self.dtype))
        return units

    def _copied(self, step: int, units: Units, channels: int) -> Units:
        """A copy with the scale carried out."""
        at, rows, scale = units.live()
        made = self._rows_for(units.row >= 0, channels, born=len(self._stages))
        self._add(step, LinkStage([(made.row[at], rows, scale)], self.dtype))
        return made

    def _channels(self, step: int) -> int:
        shape = self._shapes[step]
        return shape[1] if len(shape) > 2 and shape[0] == 1 else 1

    def _rows_for(self, live: Tensor, channels: int, born: int) -> Units:
        """Rows of their own for the live units, position by position: those of a window lie together."""
        by_position = live.reshape(channels, -1).T.contiguous()
        number = by_position.view(-1).cumsum(0, dtype=torch.int32)
        count = int(number[-1]) if len(number) else 0
        row = select(by_position, number.view(by_position.shape) + (self._size - 1), -1)
        self._buffers.append(Buffer(self._size, count, born, born))
        self._size += count
        return Units(row.T.reshape(-1))

    def _add(self, step: int, stage: Stage) -> None:
        stage.step = step
        self._stages.append(stage)

    # -- the arena --------------------------------------------------------------------------------------------------

    def _lay_out(self) -> int:
        """Give every buffer a place in the arena, tell the adjoints who writes first, and build the two ends."""
        size = torch.tensor([b.size for b in self._buffers], dtype=torch.int32, device="cpu")
        begin = torch.cat([size.new_zeros(1), size.cumsum(0, dtype=torch.int32)])
        sources = torch.cat([self._units[s].row for s in self._sources])
        parts = [self._units[s] if s in self._units else Units(torch.full(
            (self._shapes[s].numel(),), -1, dtype=torch.int32, device="cpu")) for s in self._targets]
        targets = Units(torch.cat([p.row for p in parts]), None if all(p.scale is None for p in parts) else torch.cat(
            [torch.ones(len(p.row), dtype=self.dtype, device="cpu") if p.scale is None else p.scale for p in parts]))
        wanted = ends(self._shapes, self._targets, self._rows)
        targets = targets.among(torch.cat([wanted[s] for s in self._targets]))
        at, read, scale = targets.live()

        counts = [*(stage.count(begin) for stage in self._stages), native.count_distinct(read, begin)]
        residuals = Residuals(self._stages, self._buffers, begin, read, counts)
        read, (*touched, last) = residuals.read, residuals.counts
        self._reader = None if 0 in residuals.shared else self._sole_reader(touched, last)
        for k, counts in enumerate([*touched, last]):
            for b in counts.nonzero().flatten().tolist():
                self._buffers[b].last = max(self._buffers[b].last, k)
        for k, stage in enumerate(self._stages):
            if stage.scratch:
                self._buffers.append(Buffer(-1, stage.scratch, k, k))
                stage.scratch_at = len(self._buffers) - 1  # until places are known
        if self._reader is not None:
            self._buffers[0].size = self._count(self._sources, self._columns)  # dead rows too
        rows = lay_out(self._buffers)

        # Who writes first in the adjoint clears, or covers, what it writes.
        fresh = set(range(len(size))) if self._reader is None else set(range(1, len(size)))

        def claim(counts: Tensor, covers: bool) -> tuple[list[tuple[int, int]], bool]:
            mine = counts.nonzero().flatten().tolist()
            new = [b for b in mine if b in fresh]
            fresh.difference_update(new)
            if covers and len(new) == len(mine) and all(int(counts[b]) == self._buffers[b].size for b in mine):
                return [], False
            spans = [(self._buffers[b].place, self._buffers[b].place + self._buffers[b].size) for b in new]
            return spans, True

        self._collect_zero, _ = claim(last, True)
        for stage, counts in zip(reversed(self._stages), reversed(touched), strict=True):
            if stage is not self._reader:  # which writes every row itself
                stage.zero, stage.accumulate = claim(counts, not isinstance(stage, DenseStage))
        self._seed_zero = [(self._buffers[b].place, self._buffers[b].place + self._buffers[b].size)
                           for b in range(len(self._sources)) if b in fresh]

        # Each row's place: one more than that of the row before, but where a buffer begins.
        shift = torch.tensor([0, *(b.place - b.start for b in self._buffers[: len(size)])], dtype=torch.int32,
                             device="cpu")
        steps = torch.ones(self._size + 1, dtype=torch.int32, device="cpu").index_add_(0, begin[:-1], shift.diff())
        table = steps.cumsum(0, dtype=torch.int32)[:-1] - 1
        units = (sources >= 0).nonzero().flatten()
        columns = (units if self._columns is None else _position(self._columns, len(sources))[units]).int()
        if self._reader is not None:
            table[sources[units].long()] = columns
        for stage in self._stages:
            if stage.scratch:
                stage.scratch_at = self._buffers[stage.scratch_at].place
            if stage.own_rows is not None:
                stage.fresh = [(stage.own_rows.place, stage.own_rows.place + stage.own_rows.size)]
            stage.relocate(table)

        if self._rows is not None:
            at = _position(self._rows, len(targets.row))[at]
        self._collect = Link(at.int(), table[read.long()], scale, self.dtype)
        harvest = Link(table[sources[units].long()], columns, None, self.dtype)
        self._seed, self._harvest = harvest.forward, harvest.adjoint
        self._harvests_all = len(units) == self._count(self._sources, self._columns)
        self._collects_all = len(at) == self._count(self._targets, self._rows)
        return rows

    def _sole_reader(self, touched: list[Tensor], last: Tensor) -> Stage | None:
        """The stage that alone reads all of the source's rows and nothing else: it can read them from the columns.

        Their order is channel by channel, which many channels would scatter over the memory.
        """
        readers = [(stage, counts) for stage, counts in zip(self._stages, touched, strict=True) if int(counts[0])]
        few = len(self._sources) == 1 and self._channels(self._sources[0]) <= FEW_CHANNELS
        if not few or len(readers) != 1 or int(last[0]):
            return None
        (stage, counts), = readers
        alone = int(counts.sum()) == int(counts[0]) == self._buffers[0].size
        return stage if alone and not isinstance(stage, DenseStage) else None

    def _count(self, steps: Sequence[int], chosen: Tensor | None) -> int:
        return sum(self._shapes[s].numel() for s in steps) if chosen is None else len(chosen)


def _clear(arena: Tensor, spans: list[tuple[int, int]]) -> None:
    for start, stop in spans:
        arena[start:stop].zero_()


def _position(chosen: Tensor, units: int) -> Tensor:
    """unit -> its position among the chosen."""
    place = torch.full((units,), -1, dtype=torch.int64, device="cpu")
    place[chosen] = torch.arange(len(chosen), device="cpu")
    return place
