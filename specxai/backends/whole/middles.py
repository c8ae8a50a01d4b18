"""Wide middles in a graph: fully connected layers behind each other that act position by position.

A feed-forward block leads the d units of a position through h others to d again.  Products through whole values may
have one matrix (d, d) a position instead (`specxai.graph.matrices`); plans find theirs in `specxai.plan.chains`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock

import torch
from torch import Tensor

from specxai.backends.whole.steps import factor_of, picked, root_of, weights_of
from specxai.graph import Graph
from specxai.graph.matrices import position_matrices
from specxai.rules import Term
from specxai.rules.base import unchanged

SLOWER = 1.3  # a matrix that serves one position, beside one that serves all
MOST = 16  # layers and factors of a middle

Link = tuple[Tensor | None, Tensor]  # (h,) channel of a step that each input of the last layer takes, None for the
# same; (P or 1, h or 1) factor


@dataclass(frozen=True)
class Part:
    """What of a middle goes through one first layer.

    near      its step
    channel   (h,) its output that each of the last layer's inputs takes; None where they are those
    factor    (P, h) what that is multiplied by
    """

    near: int
    channel: Tensor | None
    factor: Tensor


@dataclass(frozen=True)
class Middle:
    """A middle from the step that the first layers read to the last layer's.

    source, far   these steps
    positions     P
    numbers       of one matrix
    scaled        numbers of the first layers' weights, as they are multiplied for a position
    direct        multiply-adds of a column through it, at a position
    making        and of making one matrix
    """

    source: int
    far: int
    parts: tuple[Part, ...]
    positions: int
    numbers: int
    scaled: int
    direct: int
    making: int

    def pays(self, columns: int) -> bool:
        """Are the matrices worth making for so many columns?"""
        return columns * (self.direct - SLOWER * self.numbers) > self.making

    @property
    def size(self) -> int:
        """Numbers of all matrices."""
        return self.positions * self.numbers


def middles(graph: Graph, columns: int, kept: Iterable[int] = (), size: int | None = None) -> list[Middle]:
    """Those whose matrices pay for so many columns, in order.

    kept   steps whose own blocks are asked for, which lie in no middle
    size   numbers that the matrices of one may have
    """
    finder = _Finder(graph, set(kept))
    found, taken = [], set()
    for far in finder.weights:
        one = finder.ending_at(far)
        if one is None or taken & {part.near for part in one.parts} or not one.pays(columns):
            continue
        if size is None or one.size <= size:
            found.append(one)
            taken.add(far)  # a layer of one middle is in no other
    return found


class _Finder:
    def __init__(self, graph: Graph, kept: set[int]) -> None:
        self.graph, self.kept, self.weights, self.readers = graph, kept, weights_of(graph), graph.readers()

    def ending_at(self, far: int) -> Middle | None:
        """From the last layer back through what multiplies number by number, to layers that read one value."""
        first, middle = self.graph.nodes[far].terms[0].input, self.weights[far].shape[1]
        positions = self.graph.shapes[first].numel() // middle
        one = torch.ones(1, 1, dtype=self.graph.dtype, device=self.graph.device)
        todo: dict[int, list[Link]] = {first: [(None, one)]}
        inner, parts = {far}, []
        while todo:
            step = max(todo)  # every reader of it lies behind
            links = todo.pop(step)
            if step in self.kept or not self.readers[step] <= inner or len(inner) + len(links) > MOST:
                return None
            inner.add(step)
            if step in self.weights:
                parts += [Part(step, channel, factor.expand(positions, middle)) for channel, factor in links]
                continue
            node = self.graph.nodes.get(step)
            if node is None or not node.terms:
                return None
            for term in node.terms:
                for link in links:
                    passed = self._behind(link, step, term, positions)
                    if passed is None:
                        return None
                    _add(todo.setdefault(term.input, []), *passed)
        sources = {root_of(self.graph, self.graph.nodes[part.near].terms[0].input, self.kept) for part in parts}
        if len(sources) != 1 or any(len(self.weights[part.near]) * positions != self.graph.shapes[part.near].numel()
                                    for part in parts):
            return None
        numbers = len(self.weights[far]) * self.weights[parts[0].near].shape[1]
        direct = self.weights[far].numel() + sum(self.weights[near].numel() for near in {part.near for part in parts})
        scaled = middle * self.weights[parts[0].near].shape[1]
        return Middle(sources.pop(), far, tuple(parts), positions, numbers, scaled, direct, middle * numbers)

    def _behind(self, link: Link, step: int, term: Term, positions: int) -> Link | None:
        """The link to the term's input, given that to the step; None where it is not channel by channel."""
        channel, factor = link
        shapes, device = self.graph.shapes, self.graph.device
        size, own = shapes[step].numel(), shapes[term.input].numel()
        if term.picks is None or own % positions or size % positions:
            return None
        if isinstance(term.factor, Tensor) or term.factor != 1:
            by = factor_of(self.graph, term, shapes[step]).reshape(positions, -1)
            factor = factor * (by if channel is None else by[:, channel])
        if term.picks is unchanged and size == own:
            return channel, factor
        at = picked(self.graph, step, term).reshape(positions, -1)
        at = at if channel is None else at[:, channel]
        width = own // positions
        at = at - width * torch.arange(positions, device=device)[:, None]
        if int(at.min()) < 0 or int(at.max()) >= width or not torch.equal(at, at[:1].expand_as(at)):
            return None
        whole = torch.equal(at[0], torch.arange(width, device=device))
        return None if whole else at[0], factor


def _add(links: list[Link], channel: Tensor | None, factor: Tensor) -> None:
    """Join a way to those by the same channels."""
    for k, (other, there) in enumerate(links):
        if channel is other or (channel is not None and other is not None and torch.equal(channel, other)):
            links[k] = channel, there + factor
            return
    links.append((channel, factor))


class Matrices:
    """The matrices of a middle, (P, outputs, inputs), made when they are first asked for.

    dtype   of theirs; None: the graph's
    """

    def __init__(self, middle: Middle, weights: Mapping[int, Tensor], dtype: torch.dtype) -> None:
        self._far = weights[middle.far]
        self._near = [weights[part.near] for part in middle.parts]
        self._parts, self._dtype = middle.parts, dtype
        self._lock, self._made = Lock(), None

    def __call__(self) -> Tensor:
        with self._lock:
            if self._made is None:
                far, *near = (weight.detach().to(self._dtype) for weight in (self._far, *self._near))
                near = [weight if part.channel is None else weight[part.channel]
                        for weight, part in zip(near, self._parts, strict=True)]
                factors = torch.stack([part.factor for part in self._parts])
                self._made = position_matrices(far, near, factors, dtype=self._dtype)
            return self._made


def with_matrices(graph: Graph, found: Sequence[Middle], weights: Mapping[int, Tensor], dtype: torch.dtype) -> Graph:
    """The graph where these middles are one matrix a position, of this dtype, which blocks are rounded to.

    The matrices are there as long as the graph is.
    """
    nodes = dict(graph.nodes)
    for middle in found:
        matrices = Matrices(middle, weights, dtype)
        nodes[middle.far] = replace(nodes[middle.far], terms=(_term(graph, middle, matrices),), fully_connected=None,
                                    narrow=None)
    return replace(graph, nodes=nodes)


def _term(graph: Graph, middle: Middle, matrices: Matrices) -> Term:
    own, shape = graph.shapes[middle.source], graph.shapes[middle.far]

    def times(block: Tensor, along: Tensor, to: torch.Size) -> Tensor:
        """Every position of a block (k, *S) by its own matrix."""
        rows = block.reshape(block.shape[0], middle.positions, -1).to(along.dtype).transpose(0, 1)
        out = rows.new_empty(block.shape[0], middle.positions, along.shape[2])
        torch.bmm(rows, along, out=out.transpose(0, 1))
        return out.reshape(block.shape[0], *to)

    inputs, outputs = own.numel() // middle.positions, shape.numel() // middle.positions
    return Term(middle.source, lambda block: times(block, matrices().mT, shape),
                lambda block: times(block, matrices(), own), 2 * middle.positions * inputs * outputs)
