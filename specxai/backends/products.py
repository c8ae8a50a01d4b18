"""Products by a plan, on any engine: the arena, the order of the stages, and what a product costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from specxai._once import once
from specxai.backends.engine import Engine, Executable
from specxai.graph import Graph
from specxai.plan import Gather, Opaque, Plan, Planner
from specxai.plan.stages import Span

WIDE = 64  # columns that a product of many mostly has
KEPT_ARENAS = 2  # idle ones, whatever the number of threads that had one each
MOST_ROOM = 1 << 30  # bytes that an arena may have room for before they are needed


class PlannedBackend:
    """Products by plans over live units, run by an engine."""

    def __init__(self, graph: Graph, engine: Engine, plan_from: int = 0) -> None:
        self.graph, self.engine, self.plan_from = graph, engine, plan_from
        self.name = engine.name
        self._planner = Planner(graph)
        self._pool: list[Tensor] = []  # arenas that no product is using

    def products(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                 columns: Tensor | None = None, rows: Tensor | None = None) -> PlannedProducts:
        plan = self._planner.plan(sources, targets, held, columns, rows)
        return PlannedProducts(plan, self.engine, self.graph.dtype, self._pool)

    def live_units(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                   columns: Tensor | None = None, rows: Tensor | None = None) -> dict[int, Tensor]:
        return self._planner.live_units(sources, targets, held, columns, rows)


class PlannedProducts:
    """Products of the map between steps: `matmat` (n, k) -> (m, k), `rmatmat` (m, k) -> (n, k).

    The plan itself is not kept: its executables hold what they need of it.

    pool     idle arenas, shared with other plans of the same engine
    opaque   steps that run through the reference's terms
    instead  (step, engine, reason) of those that another engine runs
    """

    def __init__(self, plan: Plan, engine: Engine, dtype: torch.dtype, pool: list[Tensor]) -> None:
        self.backend, self.has_rough, self.dtype = engine.name, engine.has_rough, dtype
        self._engine, self._pool = engine, pool
        self._work = [engine.lower(stage) for stage in plan.stages]
        self._places = [stage.place for stage in plan.stages]
        self._weighted = [(k, stage.step, stage.live) for k, stage in enumerate(plan.stages)
                          if isinstance(stage, Gather)]
        self.opaque = [stage.step for stage in plan.stages if isinstance(stage, Opaque)]
        self.instead = [(stage.step, *work.instead) for stage, work in zip(plan.stages, self._work, strict=True)
                        if hasattr(work, "instead")]
        self._seed, self._collect = engine.lower(plan.seed), engine.lower(plan.collect)
        self.arena_rows, self._n, self._m, self._traffic = plan.rows, plan.n, plan.m, plan.traffic
        self.direct, self._source = plan.direct, plan.source
        self._seed_zero, self._collect_zero = plan.seed_zero, plan.collect_zero
        self._fills_sources, self._fills_targets = plan.fills_sources, plan.fills_targets

    def matmat(self, X: Tensor, rough: bool = False) -> Tensor:
        X = self._engine.columns(X)
        probes = X.shape[1]
        mode = self._mode(probes, rough)
        out = self._engine.empty(self._m, probes)
        if not self._fills_targets:
            out.zero_()
        with self._arena(probes) as arena:
            source = self._source_of(X, arena)
            if source is not X:
                self._seed.forward(X, source, probes, mode)
            for k, (work, place) in enumerate(zip(self._work, self._places, strict=True)):
                _clear(arena, place.fresh)
                work.forward(source if k == self.direct else arena, arena, probes, mode)
            self._collect.forward(arena, out, probes, mode)
        return out

    def rmatmat(self, Y: Tensor, rough: bool = False) -> Tensor:
        Y = self._engine.columns(Y)
        probes = Y.shape[1]
        mode = self._mode(probes, rough)
        out = self._engine.empty(self._n, probes)
        if not self._fills_sources:
            out.zero_()
        with self._arena(probes) as arena:
            source = self._source_of(out, arena)
            _clear(arena, self._collect_zero)
            self._collect.adjoint(Y, arena, probes, mode)
            for k, (work, place) in reversed(list(enumerate(zip(self._work, self._places, strict=True)))):
                _clear(arena, place.zero)
                work.adjoint(arena, source if k == self.direct else arena, probes, mode)
            _clear(arena, self._seed_zero)
            if source is not out:
                self._seed.adjoint(source, out, probes, mode)
        return out

    @once
    def flops(self) -> int:
        """Operations of one column's product over live units, a multiply-add counted as two."""
        return 2 * sum(work.multiply_adds for work in self._work)

    def costs(self) -> list[tuple[int, int, int]]:
        """(step, live units, operations of one column) of every weighted node, in order."""
        return [(step, live, 2 * self._work[k].multiply_adds) for k, step, live in self._weighted]

    def column_cost(self, columns: int, rough: bool = False) -> float:
        return self._engine.column_cost(columns, rough and self.has_rough)

    def bytes_moved(self, columns: int) -> int:
        """Bytes of the rows that stages read, each once a stage, and write: what no cache can spare."""
        return self._traffic * self.dtype.itemsize * columns

    def product_bytes(self, columns: int) -> int:
        """Bytes that a product holds, block and result included."""
        room = self._engine.room(columns, self.arena_rows, self._work)
        return self.dtype.itemsize * (room + (self._n + self._m) * columns)

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

    @contextmanager
    def _arena(self, probes: int) -> Iterator[Tensor]:
        """A block from the pool, which spares a product the page faults; two threads never share one."""
        stride = self._engine.stride_of(probes)
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
            memory = self._engine.empty(wide if roomy else needed, 1).flatten()
        try:
            yield memory[:needed].view(-1, stride)
        finally:
            if len(self._pool) < KEPT_ARENAS:
                self._pool.append(memory)


def _clear(arena: Tensor, spans: Sequence[Span]) -> None:
    for start, stop in spans:
        arena[start:stop].zero_()


__all__ = ["Executable", "PlannedBackend", "PlannedProducts"]
