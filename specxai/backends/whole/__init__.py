"""Adjoints of many columns through whole values, for which nodes of a graph are joined: fewer passes over the memory.

Where no plan pays, as for a decoder on a GPU, each node of a graph makes a value of its own.  Here norms written by
hand, attention, and what only moves numbers become one node each, and wide middles become one matrix a position.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from specxai._kernels import has_kernels
from specxai.backends.whole.attention import attentions, with_attention
from specxai.backends.whole.bfloat16 import in_bfloat16
from specxai.backends.whole.middles import Middle, middles, with_matrices
from specxai.backends.whole.norms import with_norms
from specxai.backends.whole.routes import routes, with_routes
from specxai.backends.whole.steps import weights_of
from specxai.graph import Graph

__all__ = ["Joined", "joined"]


@dataclass(frozen=True)
class Joined:
    """A graph to pull blocks back through.

    graph    whose nodes are joined, but for middles
    dtype    of its products
    exact    as it was, but for norms
    """

    graph: Graph
    dtype: torch.dtype
    exact: Graph
    kept: tuple[int, ...]

    def middles(self, columns: int, size: int) -> list[Middle]:
        """Those whose matrices, of so many bytes at most, pay for so many columns."""
        return middles(self.exact, columns, self.kept, size // self.dtype.itemsize)

    def between(self, source: int, target: int, found: Iterable[Middle]) -> tuple[Graph, int]:
        """(the graph with matrices in place of those of the middles that lie between two steps, their bytes)."""
        inside = [middle for middle in found if source <= middle.source and middle.far <= target]
        size = self.dtype.itemsize * sum(middle.size for middle in inside)
        return with_matrices(self.graph, inside, weights_of(self.exact), self.dtype), size


def joined(graph: Graph, kept: Iterable[int], dtype: torch.dtype | None = None) -> Joined:
    """The graph as `Joined`, for pulls that begin, end or are tapped at `kept` steps.

    dtype   bfloat16, or None for the graph's own
    """
    kept = tuple(kept)
    live = graph.ancestors(kept)  # others read what lies between, but lead nowhere
    exact = with_norms(replace(graph, nodes={step: node for step, node in graph.nodes.items() if step in live}), kept)
    made = exact if dtype is None else in_bfloat16(exact, kept)
    made = with_attention(made, attentions(exact, kept), dtype or graph.dtype)
    if has_kernels(graph.device):  # elsewhere views are cheaper than to gather
        made = with_routes(made, routes(made, kept))
    return Joined(made, dtype or graph.dtype, exact, kept)
