"""Norms written by hand: a value times a number a group that is made of it, as one diagonal plus a low rank.

Root mean squares are mostly written as x / √(mean x² + ε) times a weight.  Its derivative d dx + l (ρᵀ dx), with the
number r a group and its gradient ρ, takes one pass over a value instead of about eight.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specxai.backends.reference import pull
from specxai.backends.whole.steps import factor_of
from specxai.graph import Graph
from specxai.rules import LinearNode, Term
from specxai.rules.base import DiagonalPlusLowRank, along_axes, unchanged

MOST = 16  # nodes that a norm is written with


@dataclass(frozen=True)
class Norm:
    """dy = d dx + l Σ ρ dx over the last axis.

    source, out   the steps of x and y
    """

    source: int
    out: int
    diagonal: Tensor
    left: Tensor
    right: Tensor

    def term(self) -> Term:
        d, left, right = self.diagonal, self.left, self.right

        def apply(block: Tensor) -> Tensor:
            return (block * d).addcmul_(left.expand_as(d), (block * right).sum(-1, keepdim=True))

        def adjoint(block: Tensor) -> Tensor:
            return (block * d).addcmul_(right, (block * left).sum(-1, keepdim=True))

        def low_rank() -> DiagonalPlusLowRank:
            return DiagonalPlusLowRank(along_axes(d.shape, (d.ndim - 1,)), d, (left,), (right,))

        return Term(self.source, apply, adjoint, 4 * d.numel(), low_rank=low_rank)


def with_norms(graph: Graph, kept: Iterable[int] = ()) -> Graph:
    """The graph where such norms are one node; `kept` steps stay as they are.

    >>> import specxai
    >>> class RMS(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))
    >>> graph = specxai.linearize(RMS().eval(), torch.ones(1, 3)).graph
    >>> out = max(graph.nodes)
    >>> len(graph.between([graph.input], [out])), len(with_norms(graph).between([graph.input], [out]))
    (4, 1)
    """
    finder = _Finder(graph, set(kept))
    nodes = dict(graph.nodes)
    for step in graph.nodes:
        norm = finder.at(step)
        if norm is not None:
            nodes[norm.out] = LinearNode((norm.term(),), offset=nodes[norm.out].offset, curved=True)
    return replace(graph, nodes=nodes)


class _Finder:
    def __init__(self, graph: Graph, kept: set[int]) -> None:
        self.graph, self.kept, self.readers = graph, kept, graph.readers()

    def at(self, step: int) -> Norm | None:
        """Of the product of a value and a number a group, and what scales it afterwards."""
        node, shape = self.graph.nodes[step], self.graph.shapes[step]
        if len(node.terms) != 2 or not shape or shape[-1] == 1 or node.view:
            return None
        for whole, number in (node.terms, node.terms[::-1]):
            shapes = self.graph.shapes[whole.input], self.graph.shapes[number.input]
            if shapes == (shape, (*shape[:-1], 1)) and whole.picks is unchanged and number.picks is not None:
                return self._of(step, whole, number)
        return None

    def _of(self, step: int, whole: Term, number: Term) -> Norm | None:
        shape = self.graph.shapes[step]
        at, scale = whole.input, factor_of(self.graph, whole, shape)
        scales = {at: scale}
        while self._is_diagonal(at) and at not in self.kept:
            scale = scale * factor_of(self.graph, self.graph.nodes[at].terms[0], shape)
            at = self.graph.nodes[at].terms[0].input
            scales[at] = scale
        found = self._made_of(number.input, set(scales))
        if found is None:
            return None
        making, source = found  # the nodes that make the numbers
        scaling = set()  # and those between the value and the product
        step_back = whole.input
        while step_back != source:
            scaling.add(step_back)
            step_back = self.graph.nodes[step_back].terms[0].input
        numbers = replace(self.graph, nodes={one: self.graph.nodes[one] for one in sorted(making)})
        inner = making | scaling
        if not all(self.readers[one] <= {*inner, step} for one in inner) or inner & self.kept:
            return None
        ones = torch.ones(1, *self.graph.shapes[number.input], dtype=self.graph.dtype, device=self.graph.device)
        right = pull(numbers, {number.input: ones}, [source])[0][0]
        diagonal, left = scales[source], factor_of(self.graph, number, shape)
        while self._sole(step) is not None:
            step = self._sole(step)
            by = factor_of(self.graph, self.graph.nodes[step].terms[0], shape)
            diagonal, left = diagonal * by, left * by
        return Norm(source, step, diagonal, left, right)

    def _sole(self, step: int) -> int | None:
        """The node that alone reads the step, and scales it number by number."""
        readers = self.readers.get(step, set())
        if len(readers) != 1 or step in self.kept:
            return None
        reader = next(iter(readers))
        return reader if self._is_diagonal(reader) else None

    def _is_diagonal(self, step: int) -> bool:
        node = self.graph.nodes.get(step)
        if node is None or len(node.terms) != 1:
            return False
        term = node.terms[0]
        return term.picks is unchanged and self.graph.shapes[term.input] == self.graph.shapes[step]

    def _made_of(self, step: int, ends: set[int]) -> tuple[set[int], int] | None:
        """(the nodes that make numbers a group of one of `ends`, which one), group by group; None for others."""
        todo, inner, found = [step], set(), set()
        while todo:
            one = todo.pop()
            if one in ends:
                found.add(one)
                continue
            node = self.graph.nodes.get(one)
            if one in inner:
                continue
            if node is None or not node.terms or len(inner) >= MOST:
                return None
            inner.add(one)
            for term in node.terms:
                if not self._by_group(one, term):
                    return None
                todo.append(term.input)
        return (inner, found.pop()) if len(found) == 1 and inner else None

    def _by_group(self, step: int, term: Term) -> bool:
        """Does every unit of the step read its own group alone: number by number, or a sum over the last axis?"""
        own, shape = self.graph.shapes[term.input], self.graph.shapes[step]
        if term.picks is unchanged:
            return own == shape
        if term.entries is None or not own or shape != (*own[:-1], 1):
            return False
        group, unit, _ = term.entries()  # pooling has this shape too, over positions
        return torch.equal(group, unit // own[-1])
