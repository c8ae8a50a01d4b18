"""Products by a plan, on any engine: the arena, the order of the stages, and what a product costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from specxai._once import once
from specxai.backends.composed import Composed, affordable, clear, matrix_bytes
from specxai.backends.engine import Engine, Executable, Passed
from specxai.graph import Graph
from specxai.plan import Gather, Opaque, Place, Plan, Planner

__all__ = ["Arenas", "PlannedBackend", "PlannedProducts"]

WIDE = 64  # columns that a product of many mostly has
KEPT_ARENAS = 2  # idle ones, whatever the number of threads that had one each
MOST_ROOM = 1 << 30  # bytes that an arena may have room for before they are needed
COMPOSED = 4  # of the memory of a product, one part in so many may be matrices of positions
FEW = 16  # columns, of which less take the way through the middles: matrices are read once a product


class Arenas:
    """Blocks for the arenas of an engine's products, which spare them the page faults; two threads never share one.

    room   bytes that a block may have room for before they are needed: where pages that are not written take none
    """

    def __init__(self, engine: Engine, room: int) -> None:
        self._engine, self._room = engine, room // engine.dtype.itemsize
        self.idle: list[Tensor] = []  # that no product is using

    @contextmanager
    def block(self, rows: int, probes: int) -> Iterator[Tensor]:
        """A block (rows, stride) without values."""
        stride = self._engine.stride_of(probes)
        needed = rows * stride
        try:
            memory = self.idle.pop()
        except IndexError:  # not asked before: another thread may take the last one
            memory = None
        if memory is None or memory.numel() < needed:
            memory = None  # gone before the larger one comes
            # Room for the wide product that may follow, whose pages are then half there.
            roomy = needed < rows * WIDE <= self._room
            memory = self._engine.empty(rows * WIDE if roomy else needed, 1).flatten()
        try:
            yield memory[:needed].view(rows, stride)
        finally:
            if len(self.idle) < KEPT_ARENAS:
                self.idle.append(memory)


class PlannedBackend:
    """Products by plans over live units, run by an engine.

    max_memory   bytes that one of them may hold
    """

    def __init__(self, graph: Graph, engine: Engine, plan_from: int = 0, max_memory: int = MOST_ROOM) -> None:
        self.graph, self.engine, self.plan_from = graph, engine, plan_from
        self.name = engine.name
        self._planner = Planner(graph)
        # On other devices a block takes its memory at once.
        self._arenas = Arenas(engine, min(max_memory, MOST_ROOM) if graph.device.type == "cpu" else 0)
        self._max_memory = max_memory

    def products(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                 columns: Tensor | None = None, rows: Tensor | None = None,
                 taps: Sequence[int] = ()) -> PlannedProducts:
        plan = self._planner.plan(sources, targets, held, columns, rows, taps)
        return PlannedProducts(plan, self.engine, self._arenas, self._max_memory)

    def live_units(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                   columns: Tensor | None = None, rows: Tensor | None = None) -> dict[int, Tensor]:
        return self._planner.live_units(sources, targets, held, columns, rows)


class PlannedProducts:
    """Products of the map between steps: `matmat` (n, k) -> (m, k), `rmatmat` (m, k) -> (n, k).

    The plan itself is not kept: its executables hold what they need of it.

    arenas       shared with other plans of the same engine
    opaque       steps that run through the reference's terms
    instead      (step, engine, reason) of those that another engine runs
    max_memory   bytes that a product may hold: matrices of positions come in place of wide middles
                 (`specxai.plan.chains`) where they leave room for a product of many columns
    """

    def __init__(self, plan: Plan, engine: Engine, arenas: Arenas, max_memory: int = 0) -> None:
        self.backend, self.has_rough, self.dtype = engine.name, engine.has_rough, engine.dtype
        self.precision = engine.grade
        self._engine, self._arenas = engine, arenas
        # An engine may run several stages as one.
        self._work = (engine.lower_plan(plan) if hasattr(engine, "lower_plan") else
                      [engine.lower(stage) for stage in plan.stages])
        self._places = [stage.place for stage in plan.stages]
        self._composed: list[Composed] = []
        self._matrix_bytes = 0
        self._served, self._expected, self._few_digits = 0, 0, False
        self._weighted = [(k, stage.step, stage.live) for k, stage in enumerate(plan.stages)
                          if isinstance(stage, Gather)]
        self.opaque = [stage.step for stage in plan.stages if isinstance(stage, Opaque)]
        self.instead = [(stage.step, *work.instead) for stage, work in zip(plan.stages, self._work, strict=True)
                        if hasattr(work, "instead")]
        # Steps in the reference's terms may wait for the device, which ends a capture.
        self._graphs = None if self.opaque else engine.graphs()
        self._seed, self._collect = engine.lower(plan.seed), engine.lower(plan.collect)
        self._taps = plan.taps
        self.arena_rows, self._n, self._m, self._traffic = plan.rows, plan.n, plan.m, plan.traffic
        self._traffic -= sum(getattr(work, "saved", 0) for work in self._work)
        self.direct, self._source = plan.direct, plan.source
        self._seed_zero, self._collect_zero = plan.seed_zero, plan.collect_zero
        self._fills_sources, self._fills_targets = plan.fills_sources, plan.fills_targets
        chains = affordable(plan, engine.dtype.itemsize,
                            min(max_memory // COMPOSED, max_memory - self.product_bytes(WIDE)))
        self._composed = [Composed(chain, plan, engine) for chain in chains]
        self._matrix_bytes = matrix_bytes(chains, engine.dtype.itemsize)

    def expect(self, columns: int, rough: bool = False) -> None:
        """So many columns will come; from then on those that did come decide nothing, so that equal solves run alike.

        rough   all of them in rough products, for which matrices of few digits do
        """
        self._expected, self._few_digits = max(self._expected, columns), rough

    def _ways(self, columns: int, rough: bool) -> dict[int, Composed]:
        """The stages whose chain's matrices run instead, in a product of so many columns that is about to be made."""
        if not self._expected:
            self._served += columns
        if columns < FEW or self._few_digits > rough:
            return {}
        return {k: composed for composed in self._paid
                for k in range(composed.chain.first, composed.chain.last + 1)}

    @property
    def _paid(self) -> list[Composed]:
        """Those whose matrices the columns pay for that are expected, or that came."""
        known = self._expected or self._served
        return [composed for composed in self._composed if composed.chain.worth <= known]

    @torch.no_grad()
    def matmat(self, X: Tensor, rough: bool = False) -> Tensor:
        X = self._engine.columns(X)
        ways = self._ways(X.shape[1], rough)
        if self._graphs is None:
            return self._forward(X, rough, ways)
        return self._graphs.run(("matmat", X.shape[1], rough, *ways),
                                lambda block: self._forward(block, rough, ways), X)

    def _forward(self, X: Tensor, rough: bool, ways: dict[int, Composed]) -> Tensor:
        probes = X.shape[1]
        mode = self._mode(probes, rough)
        out = self._engine.empty(self._m, probes)
        if not self._fills_targets:
            out.zero_()
        with self._arena(probes) as arena:
            source = self._source_of(X, arena)
            if source is not X:
                self._seed.forward(X, source, probes, mode)
            for k, (work, place) in enumerate(self._items(ways, rough, adjoint=False)):
                if work is None:
                    continue
                clear(arena, place.fresh)
                work.forward(source if k == self.direct else arena, arena, probes, mode)
            self._collect.forward(arena, out, probes, mode)
        return out

    @torch.no_grad()
    def rmatmat(self, Y: Tensor, rough: bool = False, passed: Passed | None = None) -> Tensor:
        Y = self._engine.columns(Y)
        ways = self._ways(Y.shape[1], rough)
        if self._graphs is None or passed is not None:
            return self._adjoint(Y, rough, passed, ways)
        return self._graphs.run(("rmatmat", Y.shape[1], rough, *ways),
                                lambda block: self._adjoint(block, rough, None, ways), Y)

    def _adjoint(self, Y: Tensor, rough: bool, passed: Passed | None, ways: dict[int, Composed]) -> Tensor:
        probes = Y.shape[1]
        mode = self._mode(probes, rough)
        out = self._engine.empty(self._n, probes)
        if not self._fills_sources:
            out.zero_()
        with self._arena(probes) as arena:
            source = self._source_of(out, arena)
            clear(arena, self._collect_zero)
            self._collect.adjoint(Y, arena, probes, mode)
            for k, (work, place) in reversed(list(enumerate(self._items(ways, rough, adjoint=True)))):
                if work is not None:
                    clear(arena, place.zero)
                if passed is not None:
                    self._pass_on(k + 1, arena, probes, passed)
                if work is None:
                    continue
                work.adjoint(arena, source if k == self.direct else arena, probes, mode)
            clear(arena, self._seed_zero)
            if source is not out:
                self._seed.adjoint(source, out, probes, mode)
        return out

    def _items(self, ways: dict[int, Composed], rough: bool, adjoint: bool
               ) -> Iterator[tuple[Executable | None, Place]]:
        """What each stage runs, and its place: of a chain in `ways` the last stands for all, and the others are None.
        """
        for k, (work, place) in enumerate(zip(self._work, self._places, strict=True)):
            if k not in ways:
                yield work, place
            else:
                yield (ways[k].work(adjoint, rough and self._few_digits) if k == ways[k].chain.last else None), Place()

    def _arena(self, probes: int):
        if self._graphs is not None and self._graphs.capturing:  # the graph's own: no other product may write there
            return nullcontext(self._engine.empty(self.arena_rows, self._engine.stride_of(probes)))
        return self._arenas.block(self.arena_rows, probes)

    def _pass_on(self, before: int, arena: Tensor, probes: int, passed: Passed) -> None:
        for tap, (rows, dead) in zip(self._taps, self._passed, strict=True):
            if tap.before == before:
                found = arena[:, :probes].index_select(0, rows)
                passed(tap.step, found if dead is None else found.masked_fill_(dead, 0))

    @once
    def _passed(self) -> list[tuple[Tensor, Tensor | None]]:
        """Of each tap, on the device: its rows, and where its units are dead, (units, 1), None where none is."""
        device = self._engine.empty(0, 1).device
        return [(tap.rows.clamp_min(0).to(device), None if tap.whole else (tap.rows < 0)[:, None].to(device))
                for tap in self._taps]

    @once
    def flops(self) -> int:
        """Operations of one column's product over live units, through all middles, a multiply-add counted as two."""
        return 2 * sum(work.multiply_adds for work in self._work)

    @property
    def flops_run(self) -> int:
        """The same as it runs by now: with matrices in place of the middles that are worth it."""
        return self.flops - 2 * sum(composed.chain.direct - composed.chain.composed for composed in self._paid)

    def costs(self) -> list[tuple[int, int, int]]:
        """(step, live units, operations of one column) of every weighted node, in order."""
        return [(step, live, 2 * self._work[k].multiply_adds) for k, step, live in self._weighted]

    def column_cost(self, columns: int, rough: bool = False) -> float:
        return self._engine.column_cost(columns, rough and self.has_rough)

    def bytes_moved(self, columns: int) -> int:
        """Bytes of the rows that stages read, each once a stage, and write: what no cache can spare."""
        return self._traffic * self.dtype.itemsize * columns

    def product_bytes(self, columns: int) -> int:
        stride = self._engine.stride_of(columns)
        numbers = self._engine.room(columns, self.arena_rows, self._work)
        # A captured pass keeps a block and a result of its own.
        numbers += (self._n + self._m) * columns * (1 + (0 if self._graphs is None else self._graphs.kept))
        passed = max((2 * len(tap.rows) * columns for tap in self._taps), default=0)
        numbers += max(passed, *(work.scratch(stride) for work in (*self._all, *self._composed)))
        return self.dtype.itemsize * numbers + self._kept + self._matrix_bytes

    @once
    def _kept(self) -> int:
        return sum(work.kept for work in self._all) + sum(5 * len(tap.rows) for tap in self._taps)

    @property
    def _all(self) -> list[Executable]:
        return [self._seed, *self._work, self._collect]

    def _mode(self, probes: int, rough: bool):
        return self._engine.mode(probes, rough, self.arena_rows, self._work)

    def _source_of(self, columns: Tensor, arena: Tensor) -> Tensor:
        """The block whose rows are the source's: the arena, or what the direct reader reads.

        That is the product's own columns where they are a block, and otherwise their place in the arena.
        """
        if self.direct is None:
            return arena
        if columns.shape[1] == arena.shape[1] and columns.is_contiguous():
            return columns
        return arena[slice(*self._source)]

