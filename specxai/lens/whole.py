"""Sweeps through whole values, where no plan runs: segment by segment, with one matrix a position in place of wide
middles."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from specxai.backends.reference import peak_units, pull
from specxai.graph import Graph
from specxai.graph.middles import middles, weights_of, with_matrices
from specxai.lens.linear import Linearised
from specxai.lens.segments import Segment, most_held, whole_segments
from specxai.precision import full_precision

ROWS = 1024  # positions times columns of a block on a CPU: its values then stay in the caches
COLUMNS = 64  # of one there with matrices, which are read once a block
COPIES = 3  # of values: what a term makes beside its block, and what it widens

Part = tuple[int, int, Tensor]  # (number of a source, first row, rows of its lens)


def swept(found: Linearised, rows: Tensor, graph: Graph | None = None) -> Iterator[Part]:
    """The parts of a sweep of cotangents `rows` (k, d), as they are found.

    graph   of fewer digits, as `in_bfloat16` makes it; None: the map's own
    """
    own, cuts = found.local.graph, whole_segments(found.local.graph, found.sources, found.target)
    dtype, graph = (own.dtype, own) if graph is None else (torch.bfloat16, graph)
    column, memory = own.shapes[found.target].numel() * own.dtype.itemsize, found.local.max_memory
    together = max(1, min(len(rows), most_held(memory) // column))
    # Half of the memory may be matrices of a segment, which has as many blocks of the model as sources and one.
    blocks = 1 + max(len(segment.taps) for segment in cuts)
    chosen = middles(own, together, (*found.sources, found.target), memory // (2 * dtype.itemsize * blocks))
    with full_precision(own.device):
        for first in range(0, len(rows), together):
            group = rows[first:first + together]
            held = group.new_zeros(len(group), *own.shapes[found.target], dtype=own.dtype)
            held[:, 0, found.valid] = group[:, None].to(own.dtype)
            for segment in cuts:
                inside = [m for m in chosen if segment.source <= m.source and m.far <= segment.target]
                taken = held.nbytes + dtype.itemsize * sum(middle.size for middle in inside)
                part = with_matrices(graph, inside, weights_of(own), dtype)
                for number, start, mean in _pulled(found, part, segment, held, memory - taken):
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
