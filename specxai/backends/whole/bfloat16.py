"""A graph whose products are in bfloat16, as a model of that dtype computes: for adjoints through whole values.

What passes number by number keeps its dtype, so that a residual stream stays in float32 and takes up what its branches
add; products round their blocks, and add up in float32 inside.  Norms and softmaxes compute in float32 and round what
they make.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import replace

import torch
from torch import Tensor

from specxai.backends.whole.rows import Rows
from specxai.backends.whole.steps import root_of, weights_of
from specxai.graph import Graph
from specxai.rules import Term
from specxai.rules.base import DiagonalPlusLowRank, unchanged
from specxai.rules.linear import adjoint_of

Block = Callable[[Tensor], Tensor]


def in_bfloat16(graph: Graph, kept: Container[int] = ()) -> Graph:
    """The graph with adjoints of few digits; its forward terms are as they were.

    kept   steps whose own blocks are asked for

    >>> import specxai
    >>> graph = specxai.linearize(torch.nn.Linear(3, 2).eval(), torch.ones(1, 3)).graph
    >>> node = in_bfloat16(graph).nodes[max(graph.nodes)]
    >>> node.terms[0].adjoint(torch.ones(5, 1, 2)).dtype
    torch.bfloat16
    """
    nodes, weights = dict(graph.nodes), weights_of(graph)
    for step, node in graph.nodes.items():
        if step in weights:
            term = node.terms[0]
            root = root_of(graph, term.input, kept)
            times = _ByWeight(weights[step].detach().bfloat16(), graph.shapes[root])
            terms = (replace(term, input=root, adjoint=times, onto=times.onto),)
        else:
            terms = tuple(_rounded(graph, step, term) for term in node.terms)
        nodes[step] = replace(node, terms=terms)
    return replace(graph, nodes=nodes)


def _rounded(graph: Graph, step: int, term: Term) -> Term:
    own, shape, exact = graph.shapes[term.input], graph.shapes[step], term.adjoint
    if term.product is not None:
        product = replace(term.product, held=term.product.held.bfloat16())
        return replace(term, adjoint=lambda block: adjoint_of(product, block).reshape(len(block), *own))
    if term.low_rank is not None and (rows := _by_rows(term.low_rank(), shape)) is not None:
        return replace(term, adjoint=rows, onto=rows.onto)
    if term.picks is unchanged and own == shape:
        if not isinstance(term.factor, Tensor):
            return replace(term, adjoint=exact if term.factor != 1 else unchanged)
        factor = term.factor if term.factor.dtype is torch.bool else term.factor.bfloat16()
        return replace(term, adjoint=lambda block: block * factor)
    if term.picks is not None:
        return replace(term, adjoint=lambda block: exact(block).to(block.dtype))
    return replace(term, adjoint=lambda block: exact(block.to(graph.dtype)).bfloat16())


class _ByWeight:
    """dz (k, *S) ↦ dz W, (k, *own)."""

    def __init__(self, weight: Tensor, own: torch.Size) -> None:
        self._weight, self._own = weight, own

    def __call__(self, block: Tensor) -> Tensor:
        return (self._rows(block) @ self._weight).reshape(len(block), *self._own)

    def onto(self, block: Tensor, total: Tensor, own: bool) -> Tensor:
        if not own or total.dtype is not self._weight.dtype or not total.is_contiguous():
            return total + self(block)
        total.view(-1, self._weight.shape[1]).addmm_(self._rows(block), self._weight)
        return total

    def _rows(self, block: Tensor) -> Tensor:
        return block.reshape(-1, len(self._weight)).to(self._weight.dtype)


def _by_rows(low_rank: DiagonalPlusLowRank, shape: torch.Size) -> Rows | None:
    """Of norms and softmaxes over the last axis, or over all axes from one on; None for others."""
    groups, size = low_rank.units.shape
    if not torch.equal(low_rank.units.flatten(), torch.arange(groups * size, dtype=torch.int32, device="cpu")):
        return None
    back = low_rank.transposed

    def table(part: Tensor) -> Tensor:
        return part.expand(shape).reshape(groups, size).float().contiguous()

    left, right = (torch.stack([table(part) for part in parts]) for parts in (back.left, back.right))
    return Rows(table(back.diagonal), left, right, torch.bfloat16)
