"""The graph of linear nodes of one input, as data: what leads where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from specxai.rules import LinearNode


@dataclass(frozen=True, eq=False)
class Graph:
    """The linear nodes of one input, with the shapes of the values between them.

    nodes    step -> its linear node, in execution order
    shapes   step -> shape of its value
    input    the step of x (it has no node)
    dtype    of every block on the way, whatever the dtypes of the values
    device   of the values
    """

    nodes: Mapping[int, LinearNode]
    shapes: Mapping[int, torch.Size]
    input: int
    dtype: torch.dtype
    device: torch.device

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

    def readers(self) -> dict[int, set[int]]:
        """step -> the steps that read it; those that none reads are left out."""
        found: dict[int, set[int]] = {}
        for step, node in self.nodes.items():
            for term in node.terms:
                found.setdefault(term.input, set()).add(step)
        return found

    def last_use(self, path: Iterable[int], targets: Iterable[int]) -> dict[int, int]:
        """step -> the last step of `path` that reads it; targets, which are read afterwards, are left out."""
        last = {term.input: index for index in path for term in self.nodes[index].terms}
        for target in targets:
            last.pop(target, None)
        return last
