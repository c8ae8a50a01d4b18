"""One adjoint sweep: what a cotangent at the target is at every source layer, averaged over positions at once.

For a prompt with valid positions V the lens's row i is the mean over p in V of Σ_{p′ in V} ∂h_L[p′, i] / ∂h_l[p, :]: a
cotangent e_i at every valid target position, pulled back.  Causality leaves the p′ ≥ p.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from specxai.backends.reference import pull
from specxai.graph import Graph
from specxai.lens.linear import Linearised
from specxai.precision import full_precision
from specxai.rules import LinearNode

COLUMNS = 64  # of a block by a plan, whose rate more do not raise
ROWS = 1024  # positions times columns of a block by the reference: its values then stay in the caches


Rough = bool | Graph  # the operator's own rough products or not; or a graph of rough nodes


def sweep(found: Linearised, rows: Tensor, rough: Rough = False) -> Tensor:
    """(sources, k, d): the cotangents `rows` (k, d), each at all valid positions of the target, pulled back to every
    source and averaged over its valid positions.

    rough   what `rough_of` says
    """
    valid, means = found.valid, {}
    if isinstance(rough, bool):
        def passed(step: int, cotangents: Tensor) -> None:
            means[step] = _mean(cotangents.reshape(-1, found.width, len(rows))[valid], 0).T

        count = valid.stop - valid.start
        means[found.sources[0]] = found.operator.pull_back(rows.T.to(found.operator.dtype), passed, rough).T / count
    else:
        means = _through(rough, found, rows)
    return torch.stack([means[source] for source in found.sources])


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


def rows_of(found: Linearised, rough: Rough = False) -> Iterator[tuple[int, Tensor]]:
    """(i, rows i … of the lens (sources, k, d)) for all rows of J_l, block by block."""
    columns = block_columns(found)
    for start in range(0, found.width, columns):
        yield start, sweep(found, unit_rows(found, start, min(start + columns, found.width)), rough)


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
    if found.operator.rough() is not None:
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


def block_columns(found: Linearised) -> int:
    """Columns of one block: what `max_memory` holds, and no more than is worth it."""
    worth = max(8, ROWS // found.tokens) if found.local.backend == "reference" else COLUMNS
    return max(1, min(found.width, found.operator.block_size, worth))


def _mean(block: Tensor, axis: int) -> Tensor:
    """Added up in float32 at least."""
    return block.mean(axis, dtype=block.dtype if block.dtype.itemsize >= 4 else torch.float32)
