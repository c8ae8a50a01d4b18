"""Norms and softmax by the compiled kernel for a diagonal plus a low rank."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from specxai import native
from specxai._once import once
from specxai.plan import LowRank


class GroupWork:
    """Runs a `LowRank` stage; each direction's tables are made by its first run."""

    def __init__(self, stage: LowRank) -> None:
        self._stage = stage
        units, rank = stage.reads.numel(), stage.left.shape[1]
        # The stage itself, and each direction's tables.
        self.kept = units * (8 + 2 * 12 + 3 * (1 + 2 * rank) * stage.diagonal.dtype.itemsize)

    def scratch(self, stride: int) -> int:
        return 0

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        self._forward.run(inside, outside, probes)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        self._adjoint.run(outside, inside, probes, self._stage.place.accumulate)

    @property
    def multiply_adds(self) -> int:
        return self._forward.multiply_adds

    @once
    def _forward(self) -> native.LowRank:
        stage = self._stage
        return native.LowRank(inside=stage.reads, outside=stage.writes, diagonal=stage.diagonal, left=stage.left,
                              right=stage.right)

    @once
    def _adjoint(self) -> native.LowRank:
        stage = self._stage
        return native.LowRank(inside=stage.writes, outside=stage.reads, diagonal=stage.diagonal, left=stage.right,
                              right=stage.left)
