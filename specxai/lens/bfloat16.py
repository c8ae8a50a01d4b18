"""A graph whose products are in bfloat16, as a model of that dtype computes: for adjoints through whole values.

What passes number by number keeps its dtype, so that a residual stream stays in float32 and takes up what its branches
add; products round their blocks, and add up in float32 inside.  Norms and softmaxes compute in float32 and round what
they make.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from specxai.graph import Graph
from specxai.rules import LinearNode, Term
from specxai.rules.base import DiagonalPlusLowRank, unchanged
from specxai.rules.linear import adjoint_of

Block = Callable[[Tensor], Tensor]


def in_bfloat16(graph: Graph) -> Graph:
    """The graph with adjoints of few digits; its forward terms are as they were.

    >>> import specxai
    >>> graph = specxai.linearize(torch.nn.Linear(3, 2).eval(), torch.ones(1, 3)).graph
    >>> node = in_bfloat16(graph).nodes[max(graph.nodes)]
    >>> node.terms[0].adjoint(torch.ones(5, 1, 2)).dtype
    torch.bfloat16
    """
    return replace(graph, nodes={step: _node(graph, step, node) for step, node in graph.nodes.items()})


def _node(graph: Graph, step: int, node: LinearNode) -> LinearNode:
    weight = node.narrow if node.fully_connected is None else node.fully_connected.weight
    if weight is not None and len(node.terms) == 1:
        terms = (replace(node.terms[0], adjoint=_by_weight(weight.detach().bfloat16(),
                                                           graph.shapes[node.terms[0].input])),)
    else:
        terms = tuple(replace(term, adjoint=_adjoint(graph, step, term)) for term in node.terms)
    return replace(node, terms=terms)


def _adjoint(graph: Graph, step: int, term: Term) -> Block:
    own, shape, exact = graph.shapes[term.input], graph.shapes[step], term.adjoint
    if term.product is not None:
        product = replace(term.product, held=term.product.held.bfloat16())
        return lambda block: adjoint_of(product, block).reshape(len(block), *own)
    if term.low_rank is not None and (rows := _by_rows(term.low_rank(), shape)) is not None:
        return rows
    if term.picks is unchanged and own == shape:
        if not isinstance(term.factor, Tensor):
            return exact if term.factor != 1 else unchanged
        factor = term.factor if term.factor.dtype is torch.bool else term.factor.bfloat16()
        return lambda block: block * factor
    if term.picks is not None:
        return lambda block: exact(block).to(block.dtype)
    return lambda block: exact(block.to(graph.dtype)).bfloat16()


def _by_weight(weight: Tensor, own: torch.Size) -> Block:
    def adjoint(block: Tensor) -> Tensor:
        return (block.reshape(-1, weight.shape[0]).to(weight.dtype) @ weight).reshape(len(block), *own)

    return adjoint


def _by_rows(low_rank: DiagonalPlusLowRank, shape: torch.Size) -> Block | None:
    """Norms and softmaxes over the last axis, or over all axes from one on; None for others."""
    groups, size = low_rank.units.shape
    if not torch.equal(low_rank.units.flatten(), torch.arange(groups * size, dtype=torch.int32, device="cpu")):
        return None
    back = low_rank.transposed

    def table(part: Tensor) -> Tensor:
        return part.expand(shape).reshape(groups, size).float()

    diagonal = table(back.diagonal)
    left, right = (torch.stack([table(part) for part in parts]) for parts in (back.left, back.right))

    def adjoint(block: Tensor) -> Tensor:
        whole = block.reshape(len(block), groups, size).float()
        made = whole * diagonal
        for one, other in zip(left, right, strict=True):
            made.addcmul_(one, (whole * other).sum(-1, keepdim=True))
        return made.bfloat16().reshape(block.shape)

    return adjoint
