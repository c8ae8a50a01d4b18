"""Sweeps through whole values, where no plan runs: segment by segment, with one matrix a position in place of wide
middles."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from specxai.backends.reference import peak_units, pull
from specxai.backends.whole import joined
from specxai.graph import Graph
from specxai.lens.linear import Linearised
from specxai.lens.segments import Segment, most_held, whole_segments
from specxai.precision import full_precision

ROWS = 1024  # positions times columns of a block on a CPU: its values then stay in the caches
COLUMNS = 64  # of one there with matrices, which are read once a block
COPIES = 3  # of values: what a term makes beside its block, and what it widens

Part = tuple[int, int, Tensor]  # (number of a source, first row, rows of its lens)


def swept(found: Linearised, rows: Tensor, dtype: torch.dtype | None = None) -> Iterator[Part]:
    """The parts of a sweep of cotangents `rows` (k, d), as they are found.

    dtype   of products: bfloat16, or None for the graph's own
    """
    graph, cuts = found.local.graph, whole_segments(found.local.graph, found.sources, found.target)
    column, memory = graph.shapes[found.target].numel() * graph.dtype.itemsize, found.local.max_memory
    together = max(1, min(len(rows), most_held(memory) // column))
    whole = joined(graph, (*found.sources, found.target), dtype)
    chosen = whole.middles(together, memory // 2)
    with full_precision(graph.device):
        for first in range(0, len(rows), together):
            group = rows[first:first + together]
            held = group.new_zeros(len(group), *graph.shapes[found.target], dtype=graph.dtype)
            held[:, 0, found.valid] = group[:, None].to(graph.dtype)
            for segment in cuts:
                part, size = whole.between(segment.source, segment.target, chosen, most=memory // 2)
                for number, start, mean in _pulled(found, part, segment, held, memory - held.nbytes - size):
                    yield number, first + start, mean


def _pulled(found: Linearised, graph: Graph, segment: Segment, held: Tensor, room: int) -> Iterator[Part]:
    """Pull what is held at a segment's target back to its source, in its place, with so many bytes for columns."""
    columns = min(len(held), block_columns(found, graph, segment, room))
    for start in range(0, len(held), columns):
        piece = slice(start, start + columns)
        taps = {step: _Mean(found.valid) for step in segment.taps}
        held[piece] = pull(graph, {segment.target: held[piece]}, [segment.source], taps=taps)[0]
        for step, tap in taps.items():
            if tap.found is not None:
                yield found.sources.index(step), start, tap.found
    yield found.sources.index(segment.source), 0, _mean(held[:, 0, found.valid])


def block_columns(found: Linearised, graph: Graph, segment: Segment, room: int) -> int:
    """Columns that go through a segment together: what fits into so many bytes, and no more than is worth it."""
    path = graph.between([segment.source], [segment.target])
    units = peak_units(graph, path, [segment.source], [segment.target])
    columns = max(1, room // (COPIES * graph.dtype.itemsize * units))
    if graph.device.type != "cpu":
        return columns
    composed = len(path) < len(found.local.graph.between([segment.source], [segment.target]))
    return min(columns, COLUMNS if composed else max(8, ROWS // found.tokens))


class _Mean:
    """A tap that keeps the mean over the valid positions of a block (k, 1, T, d), and nothing of its size."""

    def __init__(self, valid: slice) -> None:
        self.valid, self.found = valid, None

    def append(self, block: Tensor) -> None:
        self.found = _mean(block[:, 0, self.valid])


def _mean(block: Tensor) -> Tensor:
    """(k, d) over the positions of (k, P, d), added up in float32 at least."""
    return block.mean(1, dtype=torch.promote_types(block.dtype, torch.float32))
