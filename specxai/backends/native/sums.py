"""Sums of rows by the compiled kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specxai import native
from specxai._once import once
from specxai.plan import Gather, Sum


class SumWork:
    """Runs a `Sum` stage."""

    multiply_adds = 0

    def __init__(self, stage: Sum, dtype: torch.dtype) -> None:
        self._reads, self._writes, self._dtype = stage.reads.contiguous(), stage.writes.contiguous(), dtype
        self._scale = stage.scale(dtype)
        self._accumulate = stage.place.accumulate

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


def apart(stage: Gather) -> tuple[Tensor, native.RowSum | None]:
    """(rows that the adjoint writes, the sum that folds them into those that the stage reads).

    An input that is read twice, as a pooling winner of two windows is, has each time a row of its own first.  None
    where no row is read twice.
    """
    if not stage.repeats:
        return stage.reads, None
    live = stage.reads >= 0
    rows = torch.arange(int(live.sum()), dtype=torch.int32, device="cpu") + stage.place.scratch
    own = torch.full_like(stage.reads, -1)
    own[live] = rows
    return own, native.RowSum(to=stage.reads[live], source=rows, dtype=stage.sites.weight.dtype)
