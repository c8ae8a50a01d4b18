"""Adjoints of many columns through whole values, for which nodes of a graph are joined: fewer passes over the memory.

Where no plan pays, as for a decoder on a GPU, each node of a graph makes a value of its own.  Here norms written by
hand, attention, and what only moves numbers become one node each, and wide middles become one matrix a position.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from specxai.backends.whole.attention import attentions, with_attention
from specxai.backends.whole.bfloat16 import in_bfloat16
from specxai.backends.whole.middles import Middle, middles, with_matrices
from specxai.backends.whole.norms import with_norms
from specxai.backends.whole.routes import routes, with_routes
from specxai.backends.whole.split import with_split_weights
from specxai.backends.whole.steps import weights_of
from specxai.graph import Graph
from specxai.graph.matrices import together
from specxai.native.triton import has_kernels
from specxai.precision import has_bfloat16

__all__ = ["Joined", "joined"]


@dataclass(frozen=True)
class Joined:
    """A graph to pull blocks back through.

    graph    whose nodes are joined, but for middles
    dtype    of its products
    exact    as it was, but for norms, and for nodes that lead to no kept step
    kept     steps whose own blocks are asked for
    splits   are its products of float32 sums of several in bfloat16?  Then it has no matrices, which would not be so
    """

    graph: Graph
    dtype: torch.dtype
    exact: Graph
    kept: tuple[int, ...]
    splits: bool = False

    def middles(self, columns: int, size: int) -> list[Middle]:
        """Those whose matrices, of so many bytes at most, pay for so many columns."""
        return [] if self.splits else middles(self.exact, columns, self.kept, size // self.dtype.itemsize)

    def between(self, source: int, target: int, found: Iterable[Middle], most: int | None = None) -> tuple[Graph, int]:
        """(the graph with matrices in place of those of the middles that lie between two steps; the bytes of these, and
        of what one is made with).

        most   bytes of all these matrices; middles that would exceed them stay as they are
        """
        inside, size = [], 0
        for middle in found:
            own = self.dtype.itemsize * middle.size
            if source <= middle.source and middle.far <= target and (most is None or size + own <= most):
                inside.append(middle)
                size += own
        rooms = [one.scaled * together(one.scaled, one.positions, self.graph.device) for one in inside]
        size += self.dtype.itemsize * max(rooms, default=0)
        return with_matrices(self.graph, inside, weights_of(self.exact), self.dtype), size


def joined(graph: Graph, kept: Iterable[int], dtype: torch.dtype | None = None, splits: bool | None = None) -> Joined:
    """The graph as `Joined`, for pulls that begin, end or are tapped at `kept` steps.

    dtype    bfloat16, or None for the graph's own
    splits   products of float32 by bfloat16 tensor cores; None: on a GPU that has them
    """
    kept = tuple(kept)
    if splits is None:
        splits = graph.device.type == "cuda" and has_bfloat16(graph.device)
    splits = splits and dtype is None and graph.dtype is torch.float32
    exact = _leading(with_norms(_leading(graph, kept), kept), kept)
    made = exact if dtype is None else in_bfloat16(exact, kept)
    made = with_split_weights(made, kept) if splits else made
    made = _leading(with_attention(made, attentions(exact, kept), dtype or graph.dtype), kept)
    if has_kernels(graph.device):  # elsewhere views are cheaper than to gather
        made = with_routes(made, routes(made, kept))
    return Joined(made, dtype or graph.dtype, exact, kept, splits)


def _leading(graph: Graph, kept: Iterable[int]) -> Graph:
    """Without the nodes that lead to no kept step: they read what lies between, and would keep it apart."""
    live = graph.ancestors(kept)
    return replace(graph, nodes={step: node for step, node in graph.nodes.items() if step in live})
