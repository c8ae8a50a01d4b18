"""Depthwise convolutions as sparse sums of rows: with one input and one output a group there is nothing to multiply in
tiles, and what bounds them is how many rows are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from specxai import native
from specxai._once import once
from specxai.backends.native.sums import SumWork
from specxai.plan import Gather

if TYPE_CHECKING:
    from specxai.backends.native.engine import Mode


MOST_TAPS = 25  # 5 × 5: an entry for each live output and tap is kept, which larger kernels make too many of


class DepthwiseWork:
    """Runs a depthwise `Gather` stage; each direction's sum is made by its first run."""

    def __init__(self, stage: Gather) -> None:
        self._stage: Gather | None = stage  # until both directions have sums of their own
        live_in, live_out, entry = int((stage.reads >= 0).sum()), stage.live, 4 + stage.sites.weight.itemsize
        # Whose rows a tap brings together: each has one partner at most.
        self.kept = 2 * entry * stage.sites.taps * min(live_in, live_out) + 8 * (live_in + live_out)
        self.kept += 4 * (stage.reads.numel() + stage.writes.numel())

    def scratch(self, stride: int) -> int:
        return 0

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Mode) -> None:
        made, adds = self._forward
        made.run(inside, outside, probes, adds)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Mode) -> None:
        made, copy, accumulate = self._adjoint
        if copy is None:
            made.run(outside, inside, probes, accumulate)
        else:
            made.run(outside, outside, probes)
            copy.adjoint(outside, inside, probes, mode)

    @property
    def multiply_adds(self) -> int:
        return self._forward[0].entries

    @once
    def _forward(self) -> tuple[native.RowSum, bool]:
        stage = self._stage
        made = _sum(stage.reads, stage.writes, stage.sites.reads, stage.weight())
        self._release("_adjoint")
        return made, stage.adds

    @once
    def _adjoint(self) -> tuple[native.RowSum, SumWork | None, bool]:
        stage = self._stage
        inside, copy = stage.apart()
        made = _sum(stage.writes, inside, stage.sites.feeds, stage.weight())
        self._release("_forward")
        return made, None if copy is None else SumWork(copy, made.dtype), stage.place.accumulate

    def _release(self, other: str) -> None:
        if other in self.__dict__:
            self._stage = None


def _sum(inside: Tensor, outside: Tensor, neighbours: Tensor, weight: Tensor) -> native.RowSum:
    return native.RowSum.depthwise(inside=inside.contiguous(), outside=outside.contiguous(), neighbours=neighbours,
                                   weight=weight.detach().flatten(1).contiguous())
