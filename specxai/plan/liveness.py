"""Which units are live: reached from a source, forward, and wanted by a target, backward, with the gates of this input.

Sound for every weight: a unit that is left out is zero or unused; one that is kept may still be zero by cancellation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specxai.graph import Graph
from specxai.plan.rows import Join, Mix, Pick, pick_of
from specxai.plan.sites import Sites, sites_of
from specxai.rules import LinearNode, Term


@dataclass(frozen=True)
class Structure:
    """What a plan needs of a node, found once a graph: sites, or a join, or one pick a term, or none of them."""

    sites: Sites | None
    picks: tuple[Pick | Mix | None, ...]
    join: Join | None = None


def structure_of(graph: Graph, step: int) -> Structure:
    node, shape = graph.nodes[step], graph.shapes[step]
    sites, none = None, (None,) * len(node.terms)
    if len(node.terms) == 1:
        sites = sites_of(node, graph.shapes[node.terms[0].input], shape)
    if sites is not None:
        return Structure(sites, none)
    if node.joined is not None:
        sizes = tuple(graph.shapes[term.input].numel() for term in node.terms)
        return Structure(None, none, Join.of_units(node.joined(), sizes))
    return Structure(None, tuple(pick_of(term, graph.shapes[term.input], shape, graph.dtype, graph.device)
                                 for term in node.terms))


def terms(node: LinearNode, structure: Structure, known: Mapping) -> list[tuple[Term, Pick | Mix | None]]:
    """The terms whose input is known, with their picks."""
    return [(term, pick) for term, pick in zip(node.terms, structure.picks, strict=True) if term.input in known]


def ends(shapes: Mapping[int, torch.Size], steps: Sequence[int], chosen: Tensor | None) -> dict[int, Tensor]:
    """step -> mask of its chosen units; `chosen` numbers them one step after the other, None for all."""
    sizes = [shapes[s].numel() for s in steps]
    mask = torch.ones(sum(sizes), dtype=torch.bool, device="cpu")
    if chosen is not None:
        mask = torch.zeros_like(mask).index_fill_(0, chosen, True)
    return dict(zip(steps, mask.split(sizes), strict=True))


def live_units(graph: Graph, structures: Mapping[int, Structure], path: Sequence[int], sources: Mapping[int, Tensor],
               targets: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """step -> mask of its live units (flat), for the sources and every step of the path.

    sources, targets   step -> mask of the units to start from and to reach
    """
    nodes, shapes = graph.nodes, graph.shapes
    reach = dict(sources)
    for step in path:
        found, sites = torch.zeros(shapes[step].numel(), dtype=torch.bool, device="cpu"), structures[step].sites
        if structures[step].join is not None:
            reach[step] = structures[step].join.reach([reach.get(term.input) for term in nodes[step].terms])
            continue
        for term, pick in terms(nodes[step], structures[step], reach):
            live = reach[term.input]
            found |= sites.reach(live) if sites is not None else live.any() if pick is None else pick.reach(live)
        reach[step] = found
    want = {step: targets[step].clone() if step in targets else torch.zeros_like(mask) for step, mask in reach.items()}
    for step in reversed(path):
        wanted, sites = want[step] & reach[step], structures[step].sites
        if structures[step].join is not None:
            structures[step].join.demand(wanted, [want.get(term.input) for term in nodes[step].terms])
            continue
        for term, pick in terms(nodes[step], structures[step], reach):
            asked = want[term.input]
            asked |= (sites.demand(wanted) if sites is not None else wanted.any() if pick is None
                      else pick.demand(wanted, len(asked)))
    return {step: reach[step] & want[step] for step in reach}
