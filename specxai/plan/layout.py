"""The last pass: buffers get their places in one arena, adjoints learn who writes first, and the ends are tied.

A buffer's place is free again after its last reader, so that the peak is known before anything is allocated; the
adjoint runs the same layout backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specxai.graph import Graph
from specxai.plan.arena import Buffer, lay_out
from specxai.plan.chains import Chain, chains_of
from specxai.plan.draft import Draft, order_of
from specxai.plan.sites import FEW_CHANNELS
from specxai.plan.stages import Gather, Opaque, Place, Span, Stage, Sum, Tap, sum_of
from specxai.plan.tables import map_rows


@dataclass(frozen=True, eq=False)
class Plan:
    """Stages over one arena: forward from the sources' columns to the targets', and its exact transpose.

    stages       in order
    rows         of the arena
    traffic      rows that the stages read, each once a stage, and write
    n, m         units of the sources and of the targets
    seed         copies the sources' columns to their rows
    collect      makes the targets' columns of their rows
    source       the rows of the sources; of a direct source, dead ones too
    direct       the stage that alone reads the sources and may do so where the caller's columns lie; None for none
    seed_zero, collect_zero   rows to clear before the adjoint reads, or writes, the ends
    taps         the values whose cotangents an adjoint passes on

    Tables are int32 rows of the arena, of any shape; a plan holds no block.

    >>> import torch, specxai
    >>> from specxai.plan import Planner
    >>> graph = specxai.linearize(torch.nn.Linear(3, 2).eval(), torch.ones(1, 3)).graph
    >>> plan = Planner(graph).plan([graph.input], [max(graph.nodes)], [])
    >>> plan.n, plan.m, plan.fills_sources, plan.fills_targets
    (3, 2, True, True)
    """

    stages: tuple[Stage, ...]
    rows: int
    traffic: int
    n: int
    m: int
    seed: Sum
    collect: Sum
    source: Span
    direct: int | None
    seed_zero: tuple[Span, ...]
    collect_zero: tuple[Span, ...]
    taps: tuple[Tap, ...] = ()
    chains: tuple[Chain, ...] = ()

    @property
    def fills_sources(self) -> bool:
        """Does every unit of the sources have a row, so that an adjoint writes all of its result?"""
        return len(self.seed.reads) == self.n

    @property
    def fills_targets(self) -> bool:
        """Does every unit of the targets have a row, so that a product writes all of its result?"""
        return len(self.collect.writes) == self.m


def laid_out(draft: Draft, graph: Graph, sources: Sequence[int], targets: Sequence[int], columns: Tensor | None,
             rows: Tensor | None) -> Plan:
    """The draft over an arena.

    columns, rows   the only units of the sources and targets, numbered one step after the other; None for all
    """
    n, m = (sum(graph.shapes[s].numel() for s in steps) if chosen is None else len(chosen)
            for steps, chosen in ((sources, columns), (targets, rows)))
    *touched, last = draft.counts
    direct = None
    if len(sources) == 1 and order_of(graph.shapes[sources[0]])[1] <= FEW_CHANNELS:
        direct = _sole_reader(draft)
    numbered = len(draft.buffers)
    buffers = [replace(b, last=max([b.last, *(k for k, counts in enumerate(draft.counts) if int(counts[i]))]))
               for i, b in enumerate(draft.buffers)]
    scratch: dict[int, int] = {}  # stage -> buffer
    for k, stage in enumerate(draft.stages):
        if isinstance(stage, Gather) and stage.repeats:
            scratch[k] = len(buffers)
            buffers.append(Buffer(-1, int((stage.reads >= 0).sum()), k, k))
    if direct is not None:
        buffers[0] = replace(buffers[0], size=n)
    places, size = lay_out(buffers)

    def span(at: int) -> Span:
        return places[at], places[at] + buffers[at].size

    # Who writes first in the adjoint clears, or covers, what it writes.
    first = set(range(numbered)) if direct is None else set(range(1, numbered))

    def claim(counts: Tensor, covers: bool) -> tuple[tuple[Span, ...], bool]:
        """(rows to clear, must it add?) of whoever writes so many rows of each buffer next."""
        mine = counts.nonzero().flatten().tolist()
        new = [b for b in mine if b in first]
        first.difference_update(new)
        if covers and len(new) == len(mine) and all(int(counts[b]) == buffers[b].size for b in mine):
            return (), False
        return tuple(map(span, new)), True

    collect_zero, _ = claim(last, True)
    placed: dict[int, Place] = {}
    for k, stage in reversed(list(enumerate(draft.stages))):
        zero, accumulate = ((), False) if k == direct else claim(touched[k], not isinstance(stage, Opaque))
        own = stage.own if isinstance(stage, Gather) else None
        placed[k] = Place((span(own),) if own is not None and buffers[own].size else (), zero, accumulate,
                          places[scratch[k]] if k in scratch else 0)
    seed_zero = tuple(span(b) for b in range(len(sources)) if b in first)

    table = _table(draft, places[:numbered])
    units = (draft.sources >= 0).nonzero().flatten()
    column = (units if columns is None else _position(columns, len(draft.sources))[units]).int()
    if direct is not None:  # the rows of its arena are the columns' own
        table[draft.sources[units].long()] = column
    at = draft.at if rows is None else _position(rows, sum(graph.shapes[s].numel() for s in targets))[draft.at]
    stages = tuple(replace(stage.moved(table), place=placed[k]) for k, stage in enumerate(draft.stages))
    traffic = sum(int(counts.sum()) + int((stage.writes >= 0).sum())
                  for stage, counts in zip(draft.stages, touched, strict=True))
    chains = tuple(c for c in chains_of(draft) if direct is None or not c.first <= direct <= c.last)
    return Plan(
        stages, size, traffic, n, m, sum_of(-1, [(table[draft.sources[units].long()], column, None)]),
        sum_of(-1, [(at, table[draft.read.long()], draft.scale)]), span(0), direct, seed_zero,
        collect_zero, tuple(replace(tap, rows=map_rows(tap.rows, table)) for tap in draft.taps),
        chains)


def _table(draft: Draft, places: Sequence[int]) -> Tensor:
    """Each row's place: one more than that of the row before, but where a buffer begins."""
    shift = torch.tensor([0, *(place - b.start for place, b in zip(places, draft.buffers, strict=True))],
                         dtype=torch.int32, device="cpu")
    steps = torch.ones(int(draft.begin[-1]) + 1, dtype=torch.int32, device="cpu")
    return steps.index_add_(0, draft.begin[:-1], shift.diff()).cumsum(0, dtype=torch.int32)[:-1] - 1


def _sole_reader(draft: Draft) -> int | None:
    """The stage that alone reads all of the source's rows and nothing else: it can read them from the columns.

    Their order is channel by channel, which many channels would scatter over the memory.
    """
    *touched, last = draft.counts
    readers = [k for k, counts in enumerate(touched) if int(counts[0])]
    if 0 in draft.shared or len(readers) != 1 or int(last[0]):
        return None
    counts = touched[readers[0]]
    alone = int(counts.sum()) == int(counts[0]) == draft.buffers[0].size
    return readers[0] if alone and not isinstance(draft.stages[readers[0]], Opaque) else None


def _position(chosen: Tensor, units: int) -> Tensor:
    """unit -> its position among the chosen."""
    place = torch.full((units,), -1, dtype=torch.int64, device="cpu")
    place[chosen] = torch.arange(len(chosen), device="cpu")
    return place
