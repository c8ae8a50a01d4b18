"""Sums of rows by the compiled kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specxai import native
from specxai._once import once
from specxai.plan import Sum


class SumWork:
    """Runs a `Sum` stage."""

    multiply_adds = 0

    def __init__(self, stage: Sum, dtype: torch.dtype) -> None:
        self._reads, self._writes, self._dtype = stage.reads.contiguous(), stage.writes.contiguous(), dtype
        self._scale = stage.scale(dtype)
        self._accumulate = stage.place.accumulate
        # Rows read and written, then in each direction an entry's and its sum's.
        self.kept = (32 if self._scale is None else 32 + 3 * dtype.itemsize) * len(stage.reads)

    def scratch(self, stride: int) -> int:
        return 0

    @once
    def _forward(self) -> native.RowSum:
        return native.RowSum(to=self._writes, source=self._reads, scale=self._scale, dtype=self._dtype)

    @once
    def _adjoint(self) -> native.RowSum:
        return native.RowSum(to=self._reads, source=self._writes, scale=self._scale, dtype=self._dtype)

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        self._forward.run(inside, outside, probes)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        self._adjoint.run(outside, inside, probes, self._accumulate)
