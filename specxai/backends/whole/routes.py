"""Ways that only move and scale numbers, from one value to another: rotations, splits, heads, as one step.

Between a projection and attention lie a dozen views, halves, signs, products with cosines and concatenations.  Together
every unit of the projection reads a few numbers behind them: one pass over the memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specxai.backends.whole.steps import factor_of, only_back, picked
from specxai.graph import Graph
from specxai.native.triton import kernel_of
from specxai.rules import LinearNode, Term

MOST = 8  # numbers that a unit reads

# From a step to a value behind it: (units of the step,) the value's unit that each one is, -1 for none; times what.  A
# `Route` is the other way round, as an adjoint reads it.
Way = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Route:
    """From the units of a source to those of a step behind it: y = Σ_w scale_w · x[at_w].

    at, scale   (entries, units of the source) of the adjoint: which units of the step each one's cotangent is the sum
                of, times what; scale is 0 where there is none
    """

    source: int
    out: int
    at: Tensor
    scale: Tensor


def routes(graph: Graph, kept: Iterable[int] = ()) -> list[Route]:
    """Those of two nodes and more, in front of what multiplies or reads otherwise; none leads through `kept` steps."""
    finder, found, taken = _Finder(graph, set(kept)), [], set()
    for step in reversed(list(graph.nodes)):
        if step in taken or not finder.moves(step) or all(finder.moves(reader) for reader in finder.readers.get(
                step, ())):
            continue
        route, inner = finder.ending_at(step)
        if route is not None:
            found.append(route)
            taken |= inner
    return found[::-1]


class _Finder:
    def __init__(self, graph: Graph, kept: set[int]) -> None:
        self.graph, self.kept, self.readers = graph, kept, graph.readers()

    def moves(self, step: int) -> bool:
        """Does the node only move and scale numbers?"""
        node = self.graph.nodes[step]
        return bool(node.terms) and (node.joined is not None or all(term.picks is not None for term in node.terms))

    def ending_at(self, out: int) -> tuple[Route | None, set[int]]:
        """(the route to a step from the one value behind, the nodes that it replaces)."""
        units, device = self.graph.shapes[out].numel(), self.graph.device
        itself = torch.arange(units, device=device), torch.ones(units, dtype=self.graph.dtype, device=device)
        todo: dict[int, list[Way]] = {out: [itself]}
        inner: set[int] = set()
        while (step := max(todo)) == out or self._goes_on(step, inner):  # every reader of the last step lies behind
            ways = todo.pop(step)
            inner.add(step)
            for term, own in zip(self.graph.nodes[step].terms, self._picked(step), strict=True):
                behind = todo.setdefault(term.input, [])
                behind += [_composed(way, own) for way in ways]
                if len(behind) > MOST:
                    return None, inner
        if len(todo) > 1 or sum(not self.graph.nodes[one].view for one in inner) < 2:
            return None, inner
        (source, ways), = todo.items()
        return _route(source, out, ways, self.graph.shapes[source].numel()), inner

    def _goes_on(self, step: int, inner: set[int]) -> bool:
        return (step in self.graph.nodes and step not in self.kept and self.moves(step)
                and self.readers[step] <= inner)

    def _picked(self, step: int) -> list[Way]:
        """Of each term of a node."""
        node, shape = self.graph.nodes[step], self.graph.shapes[step]
        found, start = [], 0
        joined = None if node.joined is None else node.joined().to(self.graph.device).flatten()
        for term in node.terms:
            own = self.graph.shapes[term.input].numel()
            if joined is not None:
                at = torch.where((joined >= start) & (joined < start + own), joined - start, -1).long()
                start += own
            else:
                at = picked(self.graph, step, term)
            scale = factor_of(self.graph, term, shape).flatten()
            found.append((at, scale))
        return found


def _composed(way: Way, behind: Way) -> Way:
    (at, scale), (further, by) = way, behind
    clamped = at.clamp_min(0)
    return torch.where(at >= 0, further[clamped], -1), scale * by[clamped]


def _route(source: int, out: int, ways: list[Way], units: int) -> Route | None:
    """The same as the adjoint reads it, source unit by source unit."""
    to, scale = (torch.cat(parts) for parts in zip(*ways, strict=True))
    place = torch.arange(len(ways[0][0]), device=to.device).repeat(len(ways))
    some = (to >= 0) & (scale != 0)
    to, scale, place = to[some], scale[some], place[some]
    to, order = to.sort(stable=True)
    counts = torch.bincount(to, minlength=units)
    most = int(counts.max()) if len(to) else 0
    if most > MOST:
        return None
    entry = torch.arange(len(to), device=to.device) - (counts.cumsum(0) - counts)[to]
    at = torch.zeros(max(1, most), units, dtype=torch.int32, device=to.device)
    by = torch.zeros(max(1, most), units, dtype=scale.dtype, device=to.device)
    at[entry, to], by[entry, to] = place[order].int(), scale[order]
    return Route(source, out, at, by)


def with_routes(graph: Graph, found: Iterable[Route]) -> Graph:
    """The graph where the adjoint of each route is one step; forward it has none."""
    nodes = dict(graph.nodes)
    for route in found:
        nodes[route.out] = LinearNode((Term(route.source, only_back, _Pulled(route, graph.shapes[route.source])),),
                                      offset=nodes[route.out].offset)
    return replace(graph, nodes=nodes)


class _Pulled:
    """Σ_e scale_e · dy[:, at_e], in the dtype of dy."""

    def __init__(self, route: Route, shape: torch.Size) -> None:
        self._at, self._scale, self._shape = route.at, route.scale, shape
        self._kernel = kernel_of("route", route.at.device)

    def __call__(self, block: Tensor) -> Tensor:
        flat = block.reshape(len(block), -1)
        made = flat.new_empty(len(flat), self._at.shape[1])
        if self._kernel is None:
            made.zero_()
            for at, scale in zip(self._at, self._scale, strict=True):
                made += flat.index_select(1, at) * scale
        else:
            self._kernel(self._at, self._scale, flat, made)
        return made.reshape(len(block), *self._shape)
