"""Opaque stages, on any engine: rows spread to whole values, the reference's term, live rows taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from specxai.backends.engine import Executable
from specxai.plan import Opaque, Place, Sum
from specxai.plan.stages import sum_of

ADDS = Place(accumulate=True)
VALUES = 4  # whole ones that are held at once: a term's block and result, and what becomes of them


class OpaqueTerms:
    """Runs an `Opaque` stage through the terms of its node.

    lower   of the engine: for the sums that spread rows and take them back
    """

    multiply_adds = 0

    def __init__(self, stage: Opaque, lower: Callable[[Sum], Executable]) -> None:
        self._operands, self._shape = stage.operands, stage.shape
        # The layout clears what it must: the adjoint adds, as two operands may read one row.
        self._into = [lower(replace(sum_of(stage.step, [(operand.at, rows, operand.scale)]), place=ADDS))
                      for operand, rows in stage.parts()]
        self._out = lower(sum_of(stage.step, [(stage.writes, stage.at, None)]))
        self._largest = max(shape.numel() for shape in (stage.shape, *(operand.shape for operand in stage.operands)))

    @property
    def kept(self) -> int:
        return sum(part.kept for part in (*self._into, self._out))

    def scratch(self, stride: int) -> int:
        return VALUES * self._largest * stride + max(part.scratch(stride) for part in (*self._into, self._out))

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        total = None
        for operand, into in zip(self._operands, self._into, strict=True):
            whole = inside.new_zeros(operand.shape.numel(), probes)
            into.forward(inside, whole, probes, mode)
            whole = whole.T.reshape(probes, *operand.shape)  # in the same name: the first is gone before the term runs
            whole = operand.term.apply(whole)
            total = whole if total is None else total + whole
        self._out.forward(total.reshape(probes, self._shape.numel()).T.contiguous(), outside, probes, mode)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        whole = outside.new_zeros(self._shape.numel(), probes)
        self._out.adjoint(outside, whole, probes, mode)
        whole = whole.T.reshape(probes, *self._shape)
        for operand, into in zip(self._operands, self._into, strict=True):
            part = operand.term.adjoint(whole).reshape(probes, operand.shape.numel())
            into.adjoint(part.T.contiguous(), inside, probes, mode)
