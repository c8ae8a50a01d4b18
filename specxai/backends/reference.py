"""The reference backend: plain PyTorch, dense masks, any dtype and device.  It is the meaning of every other one.

Blocks of k probes run through the linear nodes forward (J) or in reverse (Jᵀ); a value is dropped after its last use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from specxai.rules import LinearNode


class Graph:
    """The linear nodes of one input, with the shapes of the values between them.

    nodes    step -> its linear node, in execution order
    shapes   step -> shape of its value
    input    the step of x (it has no node)
    """

    def __init__(self, nodes: Mapping[int, LinearNode], shapes: Mapping[int, torch.Size], input: int) -> None:
        self.nodes, self.shapes, self.input = nodes, shapes, input

    def between(self, sources: Iterable[int], targets: Iterable[int], held: Iterable[int] = ()) -> list[int]:
        """Nodes on a path from a source to a target that meets no other source and no held step, in order."""
        blocked, down = {*sources, *held}, set(sources)
        for index, node in self.nodes.items():
            if index not in blocked and any(term.input in down for term in node.terms):
                down.add(index)
        wanted = set(targets)
        for index in reversed(list(self.nodes)):
            if index in wanted and index not in blocked:
                wanted.update(term.input for term in self.nodes[index].terms)
        return [index for index in self.nodes if index in down and index in wanted and index not in blocked]

    def forward(self, seeds: Mapping[int, Tensor], targets: Iterable[int], *, held: Iterable[int] = (),
                inject: Mapping[int, Tensor] | None = None, taps: Mapping[int, list] | None = None) -> list[Tensor]:
        """Push blocks (k, *S) at the seeds to the targets.

        held     steps whose value is kept at zero
        inject   blocks added where the node's own result is formed (offsets)
        taps     step -> list that the step's block is appended to
        """
        inject = inject or {}
        targets = list(targets)
        path = self.between([*seeds, *(i for i in inject if i not in seeds)] if inject else seeds, targets, held)
        if inject:  # an injected node still takes what its inputs bring
            path = self._injected_path(seeds, inject, targets, held)
        last = self._last_use(path, targets)
        k = next(iter([*seeds.values(), *inject.values()])).shape[0]
        blocks: dict[int, Tensor] = dict(seeds)
        for index in path:
            node, total = self.nodes[index], inject.get(index)
            for term in node.terms:
                if term.input in blocks:
                    part = self.apply(node, term, blocks[term.input])
                    total = part if total is None else total + part
            if total is not None:
                blocks[index] = total
                if taps and index in taps:
                    taps[index].append(total)
            for term in node.terms:
                if last.get(term.input) == index:
                    blocks.pop(term.input, None)
        some = next(iter([*seeds.values(), *inject.values()]))
        return [blocks[t] if t in blocks else some.new_zeros(k, *self.shapes[t]) for t in targets]

    def reverse(self, seeds: Mapping[int, Tensor], sources: Iterable[int], *, held: Iterable[int] = (),
                taps: Mapping[int, list] | None = None, through: bool = False) -> list[Tensor]:
        """Pull blocks (k, *S) at the targets back to the sources: the exact transpose of `forward`.

        through   sources do not stop the flow (for the cotangents at many layers in one pass)
        """
        sources = list(sources)
        start = [self.input] if through else sources
        path = self.between(start, seeds, held)
        if through:
            path = [i for i in self.nodes if i in self._ancestors(seeds)]
        some = next(iter(seeds.values()))
        blocks: dict[int, Tensor] = dict(seeds)
        stops = set() if through else set(sources)
        kept = set(sources)
        on_path = {*path, *sources, self.input} if through else {*path, *sources}
        for index in reversed(path):
            if index in stops or index not in blocks:
                continue
            block = blocks[index] if index in kept else blocks.pop(index)
            if taps and index in taps:
                taps[index].append(block)
            node = self.nodes[index]
            for term in node.terms:
                if term.input in on_path and term.input not in set(held):
                    part = self.adjoint(node, term, block)
                    blocks[term.input] = blocks[term.input] + part if term.input in blocks else part
        return [blocks[s] if s in blocks else some.new_zeros(some.shape[0], *self.shapes[s]) for s in sources]

    # A compiled backend replaces these two.
    def apply(self, node: LinearNode, term, block: Tensor) -> Tensor:
        return term.apply(block)

    def adjoint(self, node: LinearNode, term, block: Tensor) -> Tensor:
        return term.adjoint(block)

    def peak_units(self, path: list[int], sources: Iterable[int], targets: Iterable[int]) -> int:
        """The most units alive at once when one probe runs over `path`."""
        last = self._last_use(path, targets)
        alive = {s: self.shapes[s].numel() for s in sources}
        peak = sum(alive.values())
        for index in path:
            alive[index] = self.shapes[index].numel()
            peak = max(peak, sum(alive.values()))
            for term in self.nodes[index].terms:
                if last.get(term.input) == index:
                    alive.pop(term.input, None)
        return max(peak, 1)

    def _last_use(self, path: list[int], targets: Iterable[int]) -> dict[int, int]:
        last = {term.input: index for index in path for term in self.nodes[index].terms}
        for target in targets:
            last.pop(target, None)
        return last

    def _ancestors(self, targets: Iterable[int]) -> set[int]:
        wanted = set(targets)
        for index in reversed(list(self.nodes)):
            if index in wanted:
                wanted.update(term.input for term in self.nodes[index].terms)
        return wanted

    def _injected_path(self, seeds, inject, targets, held) -> list[int]:
        down, wanted, blocked = {*seeds, *inject}, self._ancestors(targets), {*seeds, *held}
        path = []
        for index, node in self.nodes.items():
            if index in blocked:
                continue
            if index in inject or any(term.input in down for term in node.terms):
                down.add(index)
                if index in wanted:
                    path.append(index)
        return path
