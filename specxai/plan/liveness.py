"""Which units are live: reached from a source, forward, and wanted by a target, backward, with the gates of this input.

Sound for every weight: a unit that is left out is zero or unused; one that is kept may still be zero by cancellation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specxai.graph import Graph
from specxai.plan.groups import Groups, groups_of
from specxai.plan.rows import Join, Mix, Pick, pick_of
from specxai.plan.sites import Sites, sites_of, sites_of_product
from specxai.rules import LinearNode, Term

Map = Sites | Groups | Pick | Mix
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Structure:
    """What a plan needs of a node, found once a graph: a map a term, None for a term without structure; or a join."""

    maps: tuple[Map | None, ...]
    join: Join | None = None

    @property
    def holds_factors(self) -> bool:
        """Does it hold copies of what the value at x holds as factors: patterns, scales, the other operand?"""
        return any(isinstance(found, Groups) or (isinstance(found, Sites) and found.exact) for found in self.maps)


def structure_of(graph: Graph, step: int) -> Structure:
    node, shape = graph.nodes[step], graph.shapes[step]
    if node.joined is not None:
        sizes = tuple(graph.shapes[term.input].numel() for term in node.terms)
        return Structure((None,) * len(node.terms), Join.of_units(node.joined(), sizes))
    if len(node.terms) == 1:
        sites = sites_of(node, graph.shapes[node.terms[0].input], shape)
        if sites is not None:
            return Structure((sites,))
    return Structure(tuple(_map_of(graph, term, shape) for term in node.terms))


def _map_of(graph: Graph, term: Term, shape: torch.Size) -> Map | None:
    own = graph.shapes[term.input]
    if term.product is not None:
        return sites_of_product(term.product, own)
    if term.low_rank is not None:
        return groups_of(term.low_rank(), shape, graph.dtype) if shape.numel() else None
    return pick_of(term, own, shape, graph.dtype, graph.device)


def moved(structure: Structure, device: torch.device) -> Structure:
    """The same with what liveness asks of it on a device; nothing else may be asked of it."""
    join = structure.join and _moved(structure.join, device)
    return Structure(tuple(found and _moved(found, device) for found in structure.maps), join)


def _moved(found: Map | Join, device: torch.device) -> Map | Join:
    if isinstance(found, Sites):
        return found.on(device)
    tensors = {name: value.to(device) for name, value in vars(found).items()
               if isinstance(value, Tensor) and name != "factor"}
    return replace(found, **tensors)


def terms(node: LinearNode, structure: Structure, known: Mapping) -> list[tuple[Term, Map | None]]:
    """The terms whose input is known, with their maps."""
    return [(term, found) for term, found in zip(node.terms, structure.maps, strict=True) if term.input in known]


def ends(shapes: Mapping[int, torch.Size], steps: Sequence[int], chosen: Tensor | None,
         device: torch.device = CPU) -> dict[int, Tensor]:
    """step -> mask of its chosen units; `chosen` numbers them one step after the other, None for all."""
    sizes = [shapes[s].numel() for s in steps]
    mask = torch.ones(sum(sizes), dtype=torch.bool, device=device)
    if chosen is not None:
        mask = torch.zeros_like(mask).index_fill_(0, chosen.to(device), True)
    return dict(zip(steps, mask.split(sizes), strict=True))


def live_units(graph: Graph, structures: Mapping[int, Structure], path: Sequence[int], sources: Mapping[int, Tensor],
               targets: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """step -> mask of its live units (flat), for the sources and every step of the path.

    sources, targets   step -> mask of the units to start from and to reach, on the device of the structures
    """
    nodes, shapes = graph.nodes, graph.shapes
    reach = dict(sources)
    device = next((mask.device for mask in sources.values()), CPU)
    for step in path:
        found = torch.zeros(shapes[step].numel(), dtype=torch.bool, device=device)
        if structures[step].join is not None:
            reach[step] = structures[step].join.reach([reach.get(term.input) for term in nodes[step].terms])
            continue
        for term, along in terms(nodes[step], structures[step], reach):
            live = reach[term.input]
            found |= live.any() if along is None else along.reach(live)
        reach[step] = found
    want = {step: targets[step].clone() if step in targets else torch.zeros_like(mask) for step, mask in reach.items()}
    for step in reversed(path):
        wanted = want[step] & reach[step]
        if structures[step].join is not None:
            structures[step].join.demand(wanted, [want.get(term.input) for term in nodes[step].terms])
            continue
        for term, along in terms(nodes[step], structures[step], reach):
            asked = want[term.input]
            asked |= wanted.any() if along is None else along.demand(wanted, len(asked))
    return {step: reach[step] & want[step] for step in reach}
