"""Live units, and the narrowest cut through them.

A unit is live between sources and targets if a change of the sources reaches it and it reaches the targets, with the
gates of this input.  A random probe finds both sides at once: its tangent is non-zero at a unit exactly when some path
of open gates leads there (with probability one), its cotangent exactly when one leads on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor

from specxai.backends.reference import Graph

PROBES = 2  # one is enough with probability one; the second guards against a chance underflow


@dataclass(frozen=True)
class LiveCut:
    """Steps whose live units every path passes; `units` index the steps' units put one after the other."""

    steps: tuple[int, ...]
    units: Tensor
    width: int


def live_masks(graph: Graph, path: Sequence[int], sources: Sequence[int], targets: Sequence[int],
               held: Sequence[int], dtype: torch.dtype, device: torch.device) -> dict[int, Tensor]:
    """step -> which of its units (flat) are live, for the sources and every step of the path."""
    generator = torch.Generator().manual_seed(0)

    def probes(steps: Sequence[int]) -> dict[int, Tensor]:
        return {s: torch.randn(PROBES, *graph.shapes[s], generator=generator, dtype=torch.float64).to(device, dtype)
                for s in steps}

    tangents: dict[int, list[Tensor]] = {s: [] for s in path}
    cotangents: dict[int, list[Tensor]] = {s: [] for s in path}
    with torch.no_grad():
        graph.forward(probes(sources), targets, held=held, taps=tangents)
        back = graph.reverse(probes(targets), sources, held=held, taps=cotangents)
    masks = {s: _nonzero(block) for s, block in zip(sources, back, strict=True)}
    for step in path:
        if tangents[step] and cotangents[step]:
            masks[step] = _nonzero(tangents[step][0]) & _nonzero(cotangents[step][0])
        elif tangents[step] and step in targets:
            masks[step] = _nonzero(tangents[step][0])
        else:
            masks[step] = torch.zeros(graph.shapes[step].numel(), dtype=torch.bool, device=device)
    return masks


def narrowest(graph: Graph, path: Sequence[int], sources: Sequence[int], targets: Sequence[int],
              held: Sequence[int], dtype: torch.dtype, device: torch.device) -> LiveCut | None:
    """The set of steps with the fewest live units that every path from the sources to the targets passes.

    A minimum vertex cut: each step is an edge of capacity = its live units, found by maximum flow.
    """
    if not path:
        return None
    masks = live_masks(graph, path, sources, targets, held, dtype, device)
    steps = [*sources, *path]
    place = {step: i for i, step in enumerate(steps)}
    widths = np.array([int(masks[s].sum()) for s in steps], dtype=np.int64)
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
        units.append(masks[step].nonzero().flatten() + offsets)
        offsets += graph.shapes[step].numel()
    if not cut:
        return None
    chosen = torch.cat(units)
    return LiveCut(cut, chosen, len(chosen))


def _nonzero(block: Tensor) -> Tensor:
    return (block != 0).any(0).flatten()
