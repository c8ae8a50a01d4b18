"""The native backend: fully connected stages run in the compiled kernel over live units only.

Everything else is the reference's.  A stage's live outputs are those whose ReLU is open, where nothing but that gate
reads them; its live inputs are those that the gate before it lets through.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specxai import native
from specxai.backends.reference import Graph
from specxai.rules import LinearNode


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


class NativeGraph(Graph):
    """`Graph` whose fully connected stages skip dead rows and columns."""

    def __init__(self, nodes, shapes, input) -> None:
        super().__init__(nodes, shapes, input)
        readers: dict[int, list[int]] = {}
        for index, node in nodes.items():
            for term in node.terms:
                readers.setdefault(term.input, []).append(index)
        self._stages: dict[int, tuple[Tensor, Tensor | None, Tensor | None]] = {}
        for index, node in nodes.items():
            if node.dense is None or shapes[index].numel() != node.dense.weight.shape[0]:
                continue  # one site only: a stage applied along an axis stays the reference's
            rows = _open(nodes, readers.get(index, []), index)
            cols = _passed(nodes, node.terms[0].input)
            self._stages[id(node)] = (node.dense.weight.detach().contiguous(), rows, cols)

    def apply(self, node: LinearNode, term, block: Tensor) -> Tensor:
        stage = self._stages.get(id(node))
        if stage is None:
            return term.apply(block)
        weight, rows, cols = stage
        units = block.reshape(block.shape[0], -1).T
        units = (units if cols is None else units[cols]).contiguous()
        out = native.gated_linear(weight, units, rows=rows, cols=cols)
        if rows is not None:
            out = units.new_zeros(weight.shape[0], out.shape[1]).index_copy_(0, rows, out)
        return out.T.reshape(block.shape[0], *self._output_shape(node, block, weight))

    def adjoint(self, node: LinearNode, term, block: Tensor) -> Tensor:
        stage = self._stages.get(id(node))
        if stage is None:
            return term.adjoint(block)
        weight, rows, cols = stage
        units = block.reshape(block.shape[0], -1).T
        units = (units if rows is None else units[rows]).contiguous()
        out = native.gated_linear(weight, units, rows=rows, cols=cols, transpose=True)
        if cols is not None:
            out = units.new_zeros(weight.shape[1], out.shape[1]).index_copy_(0, cols, out)
        return out.T.reshape(block.shape[0], *self.shapes[term.input])

    def _output_shape(self, node: LinearNode, block: Tensor, weight: Tensor) -> tuple[int, ...]:
        return (*self.shapes[node.terms[0].input][:-1], weight.shape[0])


def _mask(node: LinearNode) -> Tensor | None:
    """Units that a diagonal gate lets through."""
    return None if node.scale is None or node.gate is None else node.scale.reshape(-1) != 0


def _open(nodes, readers: list[int], index: int) -> Tensor | None:
    """Output units that a following gate keeps, None where something else reads the stage."""
    if len(readers) != 1:
        return None
    mask = _mask(nodes[readers[0]])
    return None if mask is None else mask.nonzero().flatten()


def _passed(nodes, index: int) -> Tensor | None:
    """Input units that can be non-zero, seen through copies and views."""
    while index in nodes:
        node = nodes[index]
        if (mask := _mask(node)) is not None:
            return mask.nonzero().flatten()
        if len(node.terms) != 1 or node.flops or node.dense is not None or node.scale is not None:
            return None
        index = node.terms[0].input
    return None
