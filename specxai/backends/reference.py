"""The reference backend: plain PyTorch, dense masks, any dtype and device.  It is the meaning of every other one.

Blocks of k probes run through the linear nodes forward (J) or in reverse (Jᵀ); a value is dropped after its last use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from specxai.rules import LinearNode, Term


class Graph:
    """The linear nodes of one input, with the shapes of the values between them.

    nodes    step -> its linear node, in execution order
    shapes   step -> shape of its value
    input    the step of x (it has no node)
    """

    def __init__(self, nodes: Mapping[int, LinearNode], shapes: Mapping[int, torch.Size], input: int) -> None:
        self.nodes, self.shapes, self.input = nodes, shapes, input

    def between(self, sources: Iterable[int], targets: Iterable[int], held: Iterable[int] = (),
                entering: Iterable[int] = ()) -> list[int]:
        """Nodes on a path from a source to a target that meets no other source and no held step, in order.

        entering   nodes where a path may begin too, without being replaced as a source is
        """
        blocked, entering, down = {*sources, *held}, set(entering), set(sources)
        for index, node in self.nodes.items():
            if index not in blocked and (index in entering or any(term.input in down for term in node.terms)):
                down.add(index)
        wanted = self.ancestors(targets, blocked)
        return [index for index in self.nodes if index in down and index in wanted and index not in blocked]

    def ancestors(self, targets: Iterable[int], blocked: Iterable[int] = ()) -> set[int]:
        """The targets and every step that leads to one without passing a blocked step."""
        wanted, blocked = set(targets), set(blocked)
        for index in reversed(list(self.nodes)):
            if index in wanted and index not in blocked:
                wanted.update(term.input for term in self.nodes[index].terms)
        return wanted

    def forward(self, seeds: Mapping[int, Tensor], targets: Iterable[int], *, held: Iterable[int] = (),
                inject: Mapping[int, tuple[int, Tensor]] | None = None, taps: Mapping[int, list] | None = None,
                ) -> list[Tensor]:
        """Push blocks (k, *S) at the seeds to the targets.

        held     steps whose value is kept at zero
        inject   step -> (row, tensor (*S)) added to that row of the block where the node's result is formed: offsets.
                 Without seeds, k is one more than the last row
        taps     step -> list that the step's block is appended to
        """
        inject, taps, targets = inject or {}, taps or {}, list(targets)
        path = self.between(seeds, targets, held, entering=inject)
        last = self._last_use(path, targets)
        exposed = {*seeds, *inject, *targets, *taps}
        some = next(iter(seeds.values())) if seeds else next(tensor for _, tensor in inject.values())
        k = some.shape[0] if seeds else 1 + max(row for row, _ in inject.values())
        blocks: dict[int, Tensor] = dict(seeds)
        for index in path:
            total = None
            for term in self.nodes[index].terms:
                if term.input in blocks:
                    part = self.apply(index, term, blocks[term.input], exposed)
                    total = part if total is None else total + part
                if last.get(term.input) == index:
                    blocks.pop(term.input, None)
            if index in inject:
                row, tensor = inject[index]
                # A copy: a view of an input may still be read elsewhere.
                total = tensor.new_zeros(k, *self.shapes[index]) if total is None else total.clone()
                total[row] += tensor
            blocks[index] = total
            if index in taps:
                taps[index].append(total)
        return [blocks[t] if t in blocks else some.new_zeros(k, *self.shapes[t]) for t in targets]

    def reverse(self, seeds: Mapping[int, Tensor], sources: Iterable[int], *, held: Iterable[int] = (),
                taps: Mapping[int, list] | None = None) -> list[Tensor]:
        """Pull blocks (k, *S) at the targets back to the sources and taps: the exact transpose of `forward`."""
        sources, taps = list(sources), taps or {}
        path = self.between(sources, seeds, held, entering=taps)
        reached, exposed = {*path, *sources}, {*seeds, *sources, *taps}
        blocks: dict[int, Tensor] = dict(seeds)
        for index in reversed(path):
            block = blocks.pop(index)
            if index in taps:
                taps[index].append(block)
            for term in self.nodes[index].terms:
                if term.input in reached:
                    part = self.adjoint(index, term, block, exposed)
                    blocks[term.input] = blocks[term.input] + part if term.input in blocks else part
        some = next(iter(seeds.values()))
        return [blocks[s] if s in blocks else some.new_zeros(some.shape[0], *self.shapes[s]) for s in sources]

    # A compiled backend replaces these two.  `exposed`: steps whose whole block is given or read from outside, so
    # that no unit of it may be left out although a gate closes it.
    def apply(self, index: int, term: Term, block: Tensor, exposed: set[int]) -> Tensor:
        return term.apply(block)

    def adjoint(self, index: int, term: Term, block: Tensor, exposed: set[int]) -> Tensor:
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
