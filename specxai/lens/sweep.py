"""One adjoint sweep: what a cotangent at the target is at every source layer, averaged over positions at once.

For a prompt with valid positions V the lens's row i is the mean over p in V of Σ_{p′ in V} ∂h_L[p′, i] / ∂h_l[p, :]: a
cotangent e_i at every valid target position, pulled back.  Causality leaves the p′ ≥ p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specxai.affine.local import Local
from specxai.backends.reference import WholeValues, pull
from specxai.graph import Graph
from specxai.precision import full_precision
from specxai.rules import LinearNode

ROWS = 1024  # of a block, positions times columns: wide enough for the rate of matrix products, and small in memory


class _Mean:
    """A tap that keeps the mean over the valid positions of a block (k, 1, T, d), and nothing of its size."""

    def __init__(self, valid: slice) -> None:
        self.valid, self.found = valid, None

    def append(self, block: Tensor) -> None:
        self.found = _mean(block, self.valid)


def sweep(local: Local, sources: Sequence[int], target: int, rows: Tensor, valid: slice,
          graph: Graph | None = None) -> Tensor:
    """(sources, k, d): the cotangents `rows` (k, d), each at all valid positions of the target, pulled back to every
    source and averaged over its valid positions.

    sources, target   steps of the program, each (1, T, d)
    graph             another than the Local's own, `in_bfloat16`
    """
    graph = local.graph if graph is None else graph
    seed = torch.zeros(len(rows), *graph.shapes[target], dtype=graph.dtype, device=graph.device)
    seed[:, 0, valid] = rows[:, None].to(graph.dtype)
    taps = {source: _Mean(valid) for source in sources if source != graph.input}
    with full_precision(graph.device):
        at_input = pull(graph, {target: seed}, [graph.input] if graph.input in sources else [], taps=taps)
    return torch.stack([_mean(at_input[0], valid) if source == graph.input else taps[source].found
                        for source in sources])


def rows_of(local: Local, sources: Sequence[int], target: int, valid: slice, graph: Graph | None = None,
            ) -> Iterator[tuple[int, Tensor]]:
    """(i, rows i … of the lens (sources, k, d)) for all rows of J_l, block by block."""
    width, columns = local.graph.shapes[target][-1], block_columns(local, target)
    for start in range(0, width, columns):
        rows = unit_rows(local, target, start, min(start + columns, width))
        yield start, sweep(local, sources, target, rows, valid, graph)


def unit_rows(local: Local, target: int, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of the identity (d, d)."""
    rows = torch.zeros(stop - start, local.graph.shapes[target][-1], dtype=local.graph.dtype, device=local.graph.device)
    rows[:, start:stop].fill_diagonal_(1)
    return rows


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


def block_columns(local: Local, target: int) -> int:
    """Columns of one block: what `max_memory` holds, and no more than is worth it."""
    _, tokens, width = local.graph.shapes[target]
    one = WholeValues(local.graph, [local.graph.input], [target], [], None, None).product_bytes(1)
    return max(1, min(width, local.max_memory // one, max(8, ROWS // tokens)))


def _mean(block: Tensor, valid: slice) -> Tensor:
    """(k, d), added up in float32 at least."""
    dtype = block.dtype if block.dtype.itemsize >= 4 else torch.float32
    return block[:, 0, valid].mean(1, dtype=dtype)
