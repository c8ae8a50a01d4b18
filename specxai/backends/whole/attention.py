"""Attention in a graph: the products around a softmax as one node, whose adjoint keeps no scores of all columns.

y = P v with P = softmax(c q k): the cotangent dy of y gives dv = Pᵀ dy, dP = dy vᵀ, dS = P (dP − Σ P dP), dq = c dS kᵀ
and dk = c qᵀ dS.  Between the products lie scores (heads, T, T) a column, more than all else of a block of a decoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specxai.backends.whole.steps import only_back, picked
from specxai.graph import Graph
from specxai.native.triton import kernel_of
from specxai.rules import Term
from specxai.rules.base import unchanged

WIDEST = 256  # of a head, that the kernel takes


@dataclass(frozen=True)
class Attention:
    """y = P v of one input, stack by stack of heads.

    out                      the step of y
    query, key, value        the steps of q, k (transposed) and v
    P, q, k, v               (stack, T, S), (stack, T, h), (stack, h, S), (stack, S, w)
    scale                    c
    """

    out: int
    query: int
    key: int
    value: int
    P: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    scale: float


def attentions(graph: Graph, kept: Iterable[int] = ()) -> list[Attention]:
    """Those of a graph whose softmax is not held, in order; `kept` steps lie in none."""
    kept, readers = set(kept), graph.readers()
    found = []
    for out, node in graph.nodes.items():
        if len(node.terms) == 2 and all(term.product is not None for term in node.terms):
            one = _at(graph, readers, kept, out)
            found += [] if one is None else [one]
    return found


def _at(graph: Graph, readers: dict[int, set[int]], kept: set[int], out: int) -> Attention | None:
    for of_pattern, of_value in (graph.nodes[out].terms, graph.nodes[out].terms[::-1]):
        if of_pattern.product.from_left or not of_value.product.from_left:
            continue
        softmax, factor = _behind(graph, readers, kept, of_pattern.input)
        if factor != 1 or softmax is None or not _is_softmax(graph, softmax, of_value.product.held):
            continue
        scores, scale = _behind(graph, readers, kept, graph.nodes[softmax].terms[0].input, of_value.product.held)
        if scores is None:
            continue
        terms = graph.nodes[scores].terms
        if len(terms) != 2 or any(term.product is None for term in terms):
            continue
        sides = {term.product.from_left: term for term in terms}
        if len(sides) != 2:
            continue
        P, q, k = (term.product.held for term in (of_value, sides[True], sides[False]))
        if P.shape == (*q.shape[:2], k.shape[2]):  # heads that share keys may be rows of one product only
            return Attention(out, sides[False].input, sides[True].input, of_value.input, P, q, k,
                             of_pattern.product.held, scale)
    return None


def _behind(graph: Graph, readers: dict[int, set[int]], kept: set[int], step: int, pattern: Tensor | None = None
            ) -> tuple[int | None, float]:
    """(the step behind views, masks and numbers, that alone is read by them; the product of the numbers).

    None where something else reads one of them.  A factor that is a tensor must be one number wherever the pattern is
    not zero, and there may be none without a pattern.
    """
    number = 1.0
    while step in graph.nodes and step not in kept and len(readers[step]) == 1:
        node = graph.nodes[step]
        term = node.terms[0] if len(node.terms) == 1 else None
        same = term is not None and graph.shapes[step].numel() == graph.shapes[term.input].numel()
        if term is None or term.picks is None or not same or not _in_order(graph, step, term):
            return step, number
        if isinstance(term.factor, Tensor):
            by = _number(term.factor, pattern, graph.shapes[step])
            if by is None:
                return None, 1.0
            number *= by
        else:
            number *= float(term.factor)
        step = term.input
    return None, 1.0


def _in_order(graph: Graph, step: int, term: Term) -> bool:
    """Are the units of the step those of its input, in the same order?"""
    if term.picks is unchanged or graph.nodes[step].view:
        return True
    at = picked(graph, step, term)
    return torch.equal(at, torch.arange(len(at), device=graph.device))


def _number(factor: Tensor, pattern: Tensor | None, shape: torch.Size) -> float | None:
    """The one number that a factor is, wherever the pattern is not zero; None where it is several."""
    if pattern is None:
        return None
    factor = factor.expand(shape).reshape(pattern.shape)
    some = factor[pattern != 0]
    return float(some[0]) if len(some) and bool((some == some[0]).all()) else None


def _is_softmax(graph: Graph, step: int, P: Tensor) -> bool:
    """Is the step's derivative that of a softmax over the last axis with this pattern?"""
    term = graph.nodes[step].terms[0]
    if len(graph.nodes[step].terms) != 1 or term.low_rank is None:
        return False
    found, groups = term.low_rank(), P.shape[-1]
    if len(found.left) != 1 or found.units.shape[1] != groups or found.diagonal.numel() != P.numel():
        return False
    in_order = torch.equal(found.units.flatten(), torch.arange(P.numel(), dtype=torch.int32, device="cpu"))
    p = found.diagonal.reshape(P.shape)
    return in_order and torch.equal(p, P) and torch.equal(found.right[0].reshape(P.shape), p) and torch.equal(
        found.left[0].reshape(P.shape), -p)


def with_attention(graph: Graph, found: Iterable[Attention], dtype: torch.dtype) -> Graph:
    """The graph where the adjoint of each attention is one step; forward it has none.

    dtype   of what the products take
    """
    nodes = dict(graph.nodes)
    for one in found:
        adjoint, shapes = Pulled(one, dtype), [graph.shapes[step] for step in (one.query, one.key, one.value)]

        def back(block: Tensor, adjoint: Pulled = adjoint, shapes=shapes) -> list[Tensor]:
            return [part.reshape(len(block), *shape) for part, shape in zip(adjoint(block), shapes, strict=True)]

        terms = tuple(Term(step, only_back, only_back) for step in (one.query, one.key, one.value))
        nodes[one.out] = replace(nodes[one.out], terms=terms, together=None, back=back)
    return replace(graph, nodes=nodes)


class Pulled:
    """dy (k, *S) ↦ (dq, dk, dv), (k, stack, ·, ·) each, in the dtype of the products."""

    def __init__(self, of: Attention, dtype: torch.dtype) -> None:
        self._dtype, self._scale = dtype, of.scale
        self._P, self._q, self._k, self._v = of.P, *(held.to(dtype) for held in (of.q, of.k.mT, of.v))
        fits = dtype.itemsize <= 4 and max(self._q.shape[2], self._v.shape[2]) <= WIDEST
        self._kernel = kernel_of("attention.attention_adjoint", of.P.device) if fits else None
        if self._kernel is not None:
            self._P = of.P.to(dtype)  # of another it would take more registers than there are
        self._causal = of.P.shape[1] == of.P.shape[2] and not bool(of.P.triu(1).any())

    def __call__(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        columns, (stack, T, S) = len(block), self._P.shape
        dy = block.to(self._dtype).reshape(columns, stack, T, -1)
        if self._kernel is not None:
            made = [dy.new_empty(columns, stack, rows, held.shape[2])
                    for rows, held in ((T, self._q), (S, self._k), (S, self._v))]
            self._kernel(dy, self._P, self._q, self._k, self._v, *made, self._scale, self._causal)
        else:
            # Heads behind positions, as the layer in front has them.
            made = [dy.new_empty(columns, rows, stack, held.shape[2]).transpose(1, 2)
                    for rows, held in ((T, self._q), (S, self._k), (S, self._v))]
            self._by_heads(dy, *made)
        return made[0], made[1].mT, made[2]

    def _by_heads(self, dy: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
        """One after the other, as their scores then stay in the caches."""
        columns, (stack, T, S) = len(dy), self._P.shape
        wide = torch.promote_types(self._dtype, torch.float32)
        for head in range(stack):
            d, P = dy[:, head], self._P[head].to(wide)
            dP = (d.reshape(-1, d.shape[2]) @ self._v[head].mT).view(columns, T, S).to(wide)
            dP *= P
            dS = dP.addcmul_(P, dP.sum(-1, keepdim=True), value=-1).mul_(self._scale).to(self._dtype)
            dv[:, head] = P.to(self._dtype).mT @ d
            dq[:, head] = dS @ self._k[head]
            dk[:, head] = dS.mT @ self._q[head]
