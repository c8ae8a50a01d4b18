"""The native backend: fully connected stages run in the compiled kernel over live units only.

Everything else is the reference's.  A stage's live outputs are those whose ReLU is open, where nothing but that gate
reads them; its live inputs are those that the gate before it lets through.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specxai import native
from specxai.backends.reference import Graph
from specxai.rules import LinearNode, Term


def eligible(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[bool, str]:
    """(can the backend run here, why or why not)."""
    ok, reason = native.available()
    if not ok:
        return False, reason
    if torch.device(device).type != "cpu":
        return False, f"the compiled kernels run on the CPU, the model is on {device}"
    if dtype not in (torch.float32, torch.float64):
        return False, f"the compiled kernels take float32 and float64, the model is {dtype}"
    return True, f"{native.simd_level()} kernels"


@dataclass(frozen=True)
class Stage:
    """A fully connected node's weight (out, in), and the units that gates let through on either side.

    rows     output units kept by the gate that alone reads the stage, None for all
    cols     input units kept by the gate before it, None for all
    before   the steps from that gate's output to the stage's input
    """

    weight: Tensor
    rows: Tensor | None
    cols: Tensor | None
    before: frozenset[int]


class NativeGraph(Graph):
    """`Graph` whose fully connected stages skip dead rows and columns."""

    def __init__(self, nodes, shapes, input) -> None:
        super().__init__(nodes, shapes, input)
        readers: dict[int, list[int]] = {}
        for index, node in nodes.items():
            for term in node.terms:
                readers.setdefault(term.input, []).append(index)
        self._stages: dict[int, Stage] = {}
        for index, node in nodes.items():
            if node.dense is None or shapes[index].numel() != node.dense.weight.shape[0]:
                continue  # one site only: a stage applied along an axis stays the reference's
            cols, before = _passed(nodes, node.terms[0].input)
            self._stages[index] = Stage(node.dense.weight.detach().contiguous(),
                                        _open(nodes, readers.get(index, [])), cols, before)

    def apply(self, index: int, term: Term, block: Tensor, exposed: set[int]) -> Tensor:
        return self._run(index, term, block, exposed, transpose=False)

    def adjoint(self, index: int, term: Term, block: Tensor, exposed: set[int]) -> Tensor:
        return self._run(index, term, block, exposed, transpose=True)

    def _run(self, index: int, term: Term, block: Tensor, exposed: set[int], transpose: bool) -> Tensor:
        stage = self._stages.get(index)
        if stage is None:
            return term.adjoint(block) if transpose else term.apply(block)
        rows = None if index in exposed else stage.rows
        cols = None if exposed & stage.before else stage.cols
        taken, given = (rows, cols) if transpose else (cols, rows)
        units = block.reshape(block.shape[0], -1).T
        units = (units if taken is None else units[taken]).contiguous()
        out = native.gated_linear(stage.weight, units, rows=rows, cols=cols, transpose=transpose)
        shape = self.shapes[term.input if transpose else index]
        if given is not None:
            out = units.new_zeros(shape.numel(), out.shape[1]).index_copy_(0, given, out)
        return out.T.reshape(block.shape[0], *shape)


def _mask(node: LinearNode) -> Tensor | None:
    """Units that a diagonal gate lets through."""
    return None if node.scale is None or node.gate is None else node.scale.reshape(-1) != 0


def _open(nodes, readers: list[int]) -> Tensor | None:
    """Units of a stage that a following gate keeps, None where something else reads the stage."""
    mask = _mask(nodes[readers[0]]) if len(readers) == 1 else None
    return None if mask is None else mask.nonzero().flatten()


def _passed(nodes, index: int) -> tuple[Tensor | None, frozenset[int]]:
    """Units of a stage's input that can be non-zero, seen through copies and views, and the steps seen through."""
    seen = set()
    while index in nodes:
        node = nodes[index]
        seen.add(index)
        if (mask := _mask(node)) is not None:
            return mask.nonzero().flatten(), frozenset(seen)
        if len(node.terms) != 1 or not node.view:
            break
        index = node.terms[0].input
    return None, frozenset()
