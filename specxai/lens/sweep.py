"""One adjoint sweep: what a cotangent at the target is at every source layer, averaged over positions at once.

For a prompt with valid positions V the lens's row i is the mean over p in V of Σ_{p′ in V} ∂h_L[p′, i] / ∂h_l[p, :]: a
cotangent e_i at every valid target position, pulled back.  Causality leaves the p′ ≥ p.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from specxai._blocks import give_back
from specxai.affine.operator import LocalOperator
from specxai.backends.reference import pull
from specxai.graph import Graph
from specxai.lens.linear import Linearised
from specxai.precision import full_precision
from specxai.rules import LinearNode

COLUMNS = 64  # of a block by a plan, whose rate more do not raise
ROWS = 1024  # positions times columns of a block by the reference: its values then stay in the caches
HELD = 192 << 20  # bytes of cotangents between two segments


Rough = bool | Graph  # the operator's own rough products or not; or a graph of rough nodes
Part = tuple[int, int, Tensor]  # (number of a source, first row, rows of its lens)


def sweep(found: Linearised, rows: Tensor, rough: Rough = False) -> Tensor:
    """(sources, k, d): the cotangents `rows` (k, d), each at all valid positions of the target, pulled back to every
    source and averaged over its valid positions.

    rough   what `rough_of` says
    """
    means = torch.zeros(len(found.sources), *rows.shape, dtype=rows.dtype, device=rows.device)
    for number, start, part in swept(found, rows, rough):
        means[number, start:start + len(part)] = part
    return means


def swept(found: Linearised, rows: Tensor, rough: Rough = False) -> Iterator[Part]:
    """The parts of `sweep`, as they are found: segment by segment, so that no other's plan is there, with all blocks
    of a group, whose cotangents are kept in between.
    """
    if isinstance(rough, Graph):
        for start, block in _pieces(rows, block_columns(found, found.operator)):
            means = _through(rough, found, block)
            yield from ((number, start, means[source]) for number, source in enumerate(found.sources))
        return
    give_back()
    for first, group in _pieces(rows, group_columns(found)):
        held = [(first + start, block.T.to(found.local.graph.dtype).contiguous())
                for start, block in _pieces(group, COLUMNS)]
        for segment in found.segments:
            operator = found.along(segment)
            columns = block_columns(found, operator)
            for number, (start, block) in enumerate(held):
                pulled = []
                for at, piece in _pieces(block.T, columns):
                    means: dict[int, Tensor] = {}

                    def passed(step: int, cotangents: Tensor, means: dict[int, Tensor] = means) -> None:
                        means[step] = _mean(cotangents.reshape(found.tokens, found.width, -1)[found.valid], 0).T

                    pulled.append(operator.pull_back(piece.T, passed, rough))
                    means[segment.source] = _mean_of(found, segment.source, pulled[-1])
                    yield from ((found.sources.index(step), start + at, mean) for step, mean in means.items())
                held[number] = start, pulled[0] if len(pulled) == 1 else torch.cat(pulled, 1)


def _mean_of(found: Linearised, source: int, pulled: Tensor) -> Tensor:
    """(k, d): the mean over valid positions of cotangents (positions that matter · d, k)."""
    valid, places = range(found.tokens)[found.valid], found.positions[source]
    block = pulled.reshape(len(places), found.width, -1)
    if places != list(valid):
        block = block[[at for at, place in enumerate(places) if place in valid]]
    return block.sum(0, dtype=torch.promote_types(block.dtype, torch.float32)).T / len(valid)


def _pieces(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """(the first, rows), so many at a time."""
    yield from ((start, rows[start:start + size]) for start in range(0, len(rows), size))


def _through(graph: Graph, found: Linearised, rows: Tensor) -> dict[int, Tensor]:
    """The means at each source, by another graph than the Local's own."""
    first, *others = found.sources
    seed = torch.zeros(len(rows), *graph.shapes[found.target], dtype=graph.dtype, device=graph.device)
    seed[:, 0, found.valid] = rows[:, None].to(graph.dtype)
    taps = {source: _Mean(found.valid) for source in others}
    with full_precision(graph.device):
        at_first = pull(graph, {found.target: seed}, [first], taps=taps)[0]
    return {first: _mean(at_first[:, 0, found.valid], 1)} | {source: tap.found for source, tap in taps.items()}


class _Mean:
    """A tap that keeps the mean over the valid positions of a block (k, 1, T, d), and nothing of its size."""

    def __init__(self, valid: slice) -> None:
        self.valid, self.found = valid, None

    def append(self, block: Tensor) -> None:
        self.found = _mean(block[:, 0, self.valid], 1)


def rows_of(found: Linearised, rough: Rough = False) -> Iterator[Part]:
    """All rows of every J_l, part by part."""
    yield from swept(found, unit_rows(found, 0, found.width), rough)


def unit_rows(found: Linearised, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of the identity (d, d)."""
    graph = found.local.graph
    rows = torch.zeros(stop - start, found.width, dtype=graph.dtype, device=graph.device)
    rows[:, start:stop].fill_diagonal_(1)
    return rows


def rough_of(found: Linearised) -> tuple[Rough, str]:
    """(how `sweep` takes fewer digits, what that is): the operator's own where it has them, as compiled kernels do,
    else weights in bfloat16.
    """
    if found.along(found.segments[0]).rough() is not None:
        return True, "16-bit factors"
    return in_bfloat16(found.local.graph), "weights in bfloat16"


def in_bfloat16(graph: Graph) -> Graph:
    """The graph with its products by weights in bfloat16, added up in float32 inside; the stream stays as it is."""

    def rough(node: LinearNode) -> LinearNode:
        if node.fully_connected is None or len(node.terms) != 1:
            return node
        weight, exact = node.fully_connected.weight.detach().bfloat16(), node.terms[0].adjoint
        shape = graph.shapes[node.terms[0].input]

        def adjoint(block: Tensor) -> Tensor:
            if block.dtype.itemsize > 4:
                return exact(block)
            out = block.reshape(*block.shape[:-1], weight.shape[0]).bfloat16() @ weight
            return out.to(block.dtype).reshape(block.shape[0], *shape)

        return replace(node, terms=(replace(node.terms[0], adjoint=adjoint),))

    return replace(graph, nodes={step: rough(node) for step, node in graph.nodes.items()})


def block_columns(found: Linearised, operator: LocalOperator) -> int:
    """Columns of one block: what `max_memory` holds, and no more than is worth it."""
    worth = COLUMNS if found.planned else max(8, ROWS // found.tokens)
    return max(1, min(found.width, operator.block_size, worth))


def group_columns(found: Linearised) -> int:
    """Columns that go through a segment before the next one is planned."""
    if len(found.segments) == 1:
        return COLUMNS
    return whole_blocks(found.width, found.tokens * found.width * found.local.graph.dtype.itemsize)


def whole_blocks(width: int, column: int) -> int:
    """How many of `width` columns, in groups of about one size and of whole blocks: cotangents of `HELD` bytes at most,
    or those of one block; `column` bytes each.
    """
    groups = -(-width * column // max(HELD, COLUMNS * column))
    return -(-width // (groups * COLUMNS)) * COLUMNS


def _mean(block: Tensor, axis: int) -> Tensor:
    """Added up in float32 at least."""
    return block.mean(axis, dtype=block.dtype if block.dtype.itemsize >= 4 else torch.float32)
