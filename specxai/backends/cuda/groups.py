"""Norms and softmax by the Triton kernel for a diagonal plus a low rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specxai._once import once
from specxai.plan import LowRank


class GroupWork:
    """Runs a `LowRank` stage; its tables are uploaded by the first run, and serve both directions."""

    def __init__(self, stage: LowRank, dtype: torch.dtype, device: torch.device) -> None:
        self._stage, self._dtype, self._device = stage, dtype, device
        rank = stage.left.shape[1]
        self.multiply_adds = (1 + 2 * rank) * int((stage.reads >= 0).sum())
        self.kept = 2 * stage.reads.numel() * (8 + (1 + 2 * rank) * dtype.itemsize)

    def scratch(self, stride: int) -> int:
        return 0

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        from specxai.kernels.low_rank import low_rank

        reads, writes, diagonal, left, right = self._tables
        low_rank(reads, writes, diagonal, left, right, inside[:, :probes], outside[:, :probes])

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        from specxai.kernels.low_rank import low_rank

        reads, writes, diagonal, left, right = self._tables
        low_rank(writes, reads, diagonal, right, left, outside[:, :probes], inside[:, :probes],
                 self._stage.place.accumulate)

    @once
    def _tables(self) -> tuple[Tensor, ...]:
        stage = self._stage
        rows = tuple(table.to(self._device).contiguous() for table in (stage.reads, stage.writes))
        return rows + tuple(part.to(self._device, self._dtype).contiguous()
                            for part in (stage.diagonal, stage.left, stage.right))
