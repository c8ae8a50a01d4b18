"""What the finders of this package ask of a graph's nodes."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor

from specxai.graph import Graph
from specxai.rules import Term
from specxai.rules.base import unchanged


def root_of(graph: Graph, step: int, kept: Container[int] = ()) -> int:
    """The value of which a step is a view in the same order; no `kept` one is left behind."""
    while step in graph.nodes and graph.nodes[step].view and step not in kept:
        step = graph.nodes[step].terms[0].input
    return step


def weights_of(graph: Graph) -> dict[int, Tensor]:
    """step -> weight (outputs, inputs) of the fully connected layers of a graph."""
    found = {}
    for step, node in graph.nodes.items():
        weight = node.narrow if node.fully_connected is None else node.fully_connected.weight
        if weight is not None and len(node.terms) == 1:
            found[step] = weight
    return found


def factor_of(graph: Graph, term: Term, shape: torch.Size) -> Tensor:
    """What a term multiplies each unit by, of this shape, in the graph's dtype."""
    return torch.as_tensor(term.factor, dtype=graph.dtype, device=graph.device).expand(shape)


def picked(graph: Graph, step: int, term: Term) -> Tensor:
    """(units,) the unit of a term's input that each unit of a step is, -1 for none, of a term that has `picks`."""
    own = graph.shapes[term.input]
    if term.picks is unchanged and own.numel() == graph.shapes[step].numel():
        return torch.arange(own.numel(), device=graph.device)
    # The map on numbers of the units tells.
    numbers = torch.arange(1, own.numel() + 1, device=graph.device)
    return term.picks(numbers.reshape(1, *own)).flatten() - 1


def only_back(block: Tensor) -> Tensor:
    """The forward product of a joined node: no one asks for it, as products go forward through the single nodes."""
    raise NotImplementedError("a node that was joined is only pulled back; push blocks through the graph as it was")
