"""The narrowest cut through the live units.

A unit is live between sources and targets if a change of the sources reaches it and it reaches the targets, with the
gates of this input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specxai.graph import Graph


@dataclass(frozen=True)
class LiveCut:
    """Steps whose live units every path passes; `units` index the steps' units put one after the other."""

    steps: tuple[int, ...]
    units: Tensor
    width: int


def narrowest(graph: Graph, live: Mapping[int, Tensor], sources: Sequence[int], targets: Sequence[int],
              held: Sequence[int]) -> LiveCut | None:
    """The set of steps with the fewest live units that every path from the sources to the targets passes.

    live   step -> mask of its live units, for the sources and every step between

    A minimum vertex cut: each step is an edge of capacity = its live units, found by maximum flow.
    """
    # Here, since a capture does without: it would take a fifth of a second.
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    path = graph.between(sources, targets, held)
    if not path:
        return None
    steps = [*sources, *path]
    place = {step: i for i, step in enumerate(steps)}
    widths = np.array([int(live[s].sum()) for s in steps], dtype=np.int64)
    unlimited = int(min(2**30, widths.sum() + 1))
    # Step i enters at node 2i and leaves at 2i + 1; source and sink come last.
    first, last = 2 * len(steps), 2 * len(steps) + 1
    edges: dict[tuple[int, int], int] = {(2 * i, 2 * i + 1): int(min(w, 2**30)) for i, w in enumerate(widths)}
    for step in path:
        for term in graph.nodes[step].terms:
            if term.input in place and term.input not in held:
                edges[2 * place[term.input] + 1, 2 * place[step]] = unlimited
    for step in sources:
        edges[first, 2 * place[step]] = unlimited
    for step in targets:
        if step in place:
            edges[2 * place[step] + 1, last] = unlimited
    rows, cols = zip(*edges, strict=True)
    capacity = csr_matrix((np.fromiter(edges.values(), dtype=np.int32), (rows, cols)), shape=(last + 1, last + 1))
    capacity.eliminate_zeros()
    residual = capacity - maximum_flow(capacity, first, last).flow
    residual.data = np.maximum(residual.data, 0)
    residual.eliminate_zeros()
    reached = set(breadth_first_order(residual, first, return_predecessors=False).tolist())
    cut = tuple(s for s in steps if 2 * place[s] in reached and 2 * place[s] + 1 not in reached)
    offsets, units = 0, []
    for step in cut:
        units.append(live[step].nonzero().flatten() + offsets)
        offsets += graph.shapes[step].numel()
    if not cut:
        return None
    chosen = torch.cat(units).to(graph.device)
    return LiveCut(cut, chosen, len(chosen))
