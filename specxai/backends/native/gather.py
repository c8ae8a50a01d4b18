"""Convolutions and fully connected layers by gather-GEMM, forward and adjoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from specxai import native
from specxai._once import once
from specxai.backends.native.sums import SumWork
from specxai.plan import Gather
from specxai.plan.positions import Cells
from specxai.plan.sites import Sites

if TYPE_CHECKING:
    from specxai.backends.native.engine import Mode

# What merged cells may cost in operations: as outputs they fill the tiles of the kernels; as inputs they help products
# of few columns alone, whose lanes they fill.
SCATTERING, GATHERING = 2.0, 4 / 3


class GatherWork:
    """Runs a `Gather` stage; each direction's tables are made by its first run.

    spread   numbers a probe that a product of few columns may lay out once more
    """

    def __init__(self, stage: Gather) -> None:
        self._stage: Gather | None = stage  # until both directions have tables of their own
        sites = stage.sites
        cells, inputs, outputs = _cells(stage), sites.inputs, sites.outputs
        if stage.packed:
            inputs, outputs = (int((rows >= 0).sum()) for rows in (stage.reads, stage.writes))
        sides = [(len(stage.reads), inputs), (len(stage.writes), outputs)]
        if cells is not None and cells.cost <= GATHERING:
            fine = 0 if sites.reads_fine else 1
            count, members = cells.members.shape
            sides[fine] = count, members * sides[fine][1]
        pitches = [(positions, native.pitch_of(channels // sites.groups)) for positions, channels in sides]
        self.spread = max(positions * sites.groups * pitch if pitch % native.LINE == 0 else 0
                          for positions, pitch in pitches)
        live, sites_and_cells = int((stage.reads >= 0).sum()) + stage.live, len(stage.reads) + len(stage.writes)
        # In each direction a row and a column of every live unit, and a cell and a tap of every pair of positions.
        self.kept = 16 * live + 8 * sites.groups * (sites.taps + 2) * sites_and_cells
        self.kept += 4 * (stage.reads.numel() + stage.writes.numel())

    def scratch(self, stride: int) -> int:
        return 0  # `spread`, which the engine counts with the arena, as it may do without

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Mode) -> None:
        stage, adds = self._forward
        stage.run(inside, outside, adds, rough=mode.rough, may_spread=mode.may_spread)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Mode) -> None:
        stage, copy, accumulate = self._adjoint
        if copy is None:
            stage.run(outside, inside, accumulate, rough=mode.rough, may_spread=mode.may_spread)
        else:
            stage.run(outside, outside, rough=mode.rough, may_spread=mode.may_spread)
            copy.adjoint(outside, inside, probes, mode)

    @once
    def multiply_adds(self) -> int:
        made, _ = self._forward
        return made.multiply_adds if self._pairs is None else self._pairs

    @once
    def _forward(self) -> tuple[native.GatherGemm, bool]:
        stage = self._stage
        made = _made(stage, stage.reads, stage.writes, adjoint=False)
        # Merged cells pair more than live units.
        self._pairs = stage.multiply_adds() if _merges(stage) else None
        self._release("_adjoint")
        return made, stage.adds

    @once
    def _adjoint(self) -> tuple[native.GatherGemm, SumWork | None, bool]:
        """The stage, and the copy whose adjoint folds its results where an input is read twice."""
        stage = self._stage
        inside, copy = stage.apart()
        made = _made(stage, stage.writes, inside, adjoint=True)
        self._release("_forward")
        return made, None if copy is None else SumWork(copy, made.dtype), stage.place.accumulate

    def _release(self, other: str) -> None:
        if other in self.__dict__:
            self._stage = None


def _cells(stage: Gather) -> Cells | None:
    return None if stage.packed else stage.sites.cells


def _merges(stage: Gather) -> bool:
    """Does the forward direction run over merged cells?"""
    cells = _cells(stage)
    return cells is not None and cells.cost <= (GATHERING if stage.sites.reads_fine else SCATTERING)


def _made(stage: Gather, inside: Tensor, outside: Tensor, adjoint: bool) -> native.GatherGemm:
    """The kernel's stage from rows `inside` to rows `outside`: forward, or back with the weights transposed."""
    sites: Sites = stage.sites
    weight = stage.weight()
    if stage.packed:
        live_in, live_out = (rows[0].ge(0).nonzero().flatten() for rows in (stage.reads, stage.writes))
        weight = weight[:, live_out][:, :, live_in]
        chosen_in, chosen_out = (live_out, live_in) if adjoint else (live_in, live_out)
        inside, outside = inside[:, chosen_in], outside[:, chosen_out]
    weight = weight.permute(0, 2, 3, 1) if adjoint else weight.permute(0, 1, 3, 2)
    weight = weight.flatten(0, 1)  # (outputs, taps, depth)
    neighbours, across = (sites.feeds, sites.inner[-1]) if adjoint else (sites.reads, sites.outer[-1])
    cells, scatters = _cells(stage), sites.reads_fine == adjoint
    if cells is not None and cells.cost <= (SCATTERING if scatters else GATHERING):
        if scatters:
            outside, neighbours, weight = cells.table(outside), cells.scattering, cells.of_outputs(weight)
            across = cells.across
        else:
            inside, neighbours, weight = cells.table(inside), cells.gathering, cells.of_inputs(weight)
    return native.GatherGemm(inside=inside.contiguous(), outside=outside.contiguous(), neighbours=neighbours,
                             weight=weight, groups=sites.groups, across=across, own=sites.own)
