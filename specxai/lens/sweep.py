"""One adjoint sweep: what a cotangent at the target is at every source layer, averaged over positions at once.

For a prompt with valid positions V the lens's row i is the mean over p in V of Σ_{p′ in V} ∂h_L[p′, i] / ∂h_l[p, :]: a
cotangent e_i at every valid target position, pulled back.  Causality leaves the p′ ≥ p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from specxai.affine.local import Local
from specxai.backends.reference import WholeValues, pull
from specxai.precision import full_precision

ROWS = 1024  # of a block, positions times columns: wide enough for the rate of matrix products, and small in memory


class _Mean:
    """A tap that keeps the mean over the valid positions of a block (k, 1, T, d), and nothing of its size."""

    def __init__(self, valid: slice) -> None:
        self.valid, self.found = valid, None

    def append(self, block: Tensor) -> None:
        self.found = _mean(block, self.valid)


def sweep(local: Local, sources: Sequence[int], target: int, rows: Tensor, valid: slice) -> Tensor:
    """(sources, k, d): the cotangents `rows` (k, d), each at all valid positions of the target, pulled back to every
    source and averaged over its valid positions.

    sources, target   steps of the program, each (1, T, d)
    """
    graph = local.graph
    seed = torch.zeros(len(rows), *graph.shapes[target], dtype=graph.dtype, device=graph.device)
    seed[:, 0, valid] = rows[:, None].to(graph.dtype)
    taps = {source: _Mean(valid) for source in sources if source != graph.input}
    with full_precision(graph.device):
        at_input = pull(graph, {target: seed}, [graph.input] if graph.input in sources else [], taps=taps)
    return torch.stack([_mean(at_input[0], valid) if source == graph.input else taps[source].found
                        for source in sources])


def rows_of(local: Local, sources: Sequence[int], target: int, valid: slice) -> Iterator[tuple[int, Tensor]]:
    """(i, rows i … of the lens (sources, k, d)) for all rows of J_l, block by block."""
    graph = local.graph
    width = graph.shapes[target][-1]
    columns = block_columns(local, target)
    for start in range(0, width, columns):
        count = min(columns, width - start)
        rows = torch.zeros(count, width, dtype=graph.dtype, device=graph.device)
        rows[:, start:start + count].fill_diagonal_(1)
        yield start, sweep(local, sources, target, rows, valid)


def block_columns(local: Local, target: int) -> int:
    """Columns of one block: what `max_memory` holds, and no more than is worth it."""
    _, tokens, width = local.graph.shapes[target]
    one = WholeValues(local.graph, [local.graph.input], [target], [], None, None).product_bytes(1)
    return max(1, min(width, local.max_memory // one, max(8, ROWS // tokens)))


def _mean(block: Tensor, valid: slice) -> Tensor:
    """(k, d), added up in float32 at least."""
    dtype = block.dtype if block.dtype.itemsize >= 4 else torch.float32
    return block[:, 0, valid].mean(1, dtype=dtype)
