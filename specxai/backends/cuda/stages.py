"""Stages of a plan as calls of Triton kernels.  Each direction's tables are made, and uploaded, by its first run.

Blocks of the arena have empty lanes behind the probes, which gather stages compute with the rest: addresses of whole
lanes are aligned, and what lies in them reaches no probe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specxai._once import once
from specxai.native import cuda
from specxai.plan import Gather, Sum

if TYPE_CHECKING:
    from specxai.backends.cuda.engine import Mode

FULL = ("fp32", "fp64")  # precisions without a tensor core


def is_packed(stage: Gather) -> bool:
    """One position on both sides: its weights are packed once as W[live out, live in]."""
    return len(stage.reads) == len(stage.writes) == stage.sites.groups == 1


def is_depthwise(stage: Gather) -> bool:
    """Has every group one input and one output?"""
    sites = stage.sites
    return sites.groups > 1 and sites.inputs == sites.outputs == sites.groups


class RowSums:
    """to[e] (+)= scale[e] · source[e] over blocks, in an order of its own that never changes."""

    def __init__(self, to: Tensor, source: Tensor, scale: Tensor | None, device: torch.device) -> None:
        to, source = to.to(device), source.to(device)
        to, order = to.sort(stable=True)
        rows, sizes = to.unique_consecutive(return_counts=True)
        begin = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        self._tables = [t.int() for t in (begin, rows, source[order])]
        self._tables.append(None if scale is None else scale.to(device)[order])

    def run(self, block: Tensor, out: Tensor, accumulate: bool) -> None:
        from specxai.kernels.row_sum import row_sum

        row_sum(*self._tables, block, out, accumulate)


class SumWork:
    """Runs a `Sum` stage."""

    multiply_adds = 0

    def __init__(self, stage: Sum, dtype: torch.dtype, device: torch.device) -> None:
        self._stage, self._device = stage, device
        self._scale = stage.scale(dtype)

    @once
    def _forward(self) -> RowSums:
        return RowSums(self._stage.writes, self._stage.reads, self._scale, self._device)

    @once
    def _adjoint(self) -> RowSums:
        return RowSums(self._stage.reads, self._stage.writes, self._scale, self._device)

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Mode) -> None:
        self._forward.run(inside[:, :probes], outside[:, :probes], False)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Mode) -> None:
        self._adjoint.run(outside[:, :probes], inside[:, :probes], self._stage.place.accumulate)


class _Weighted:
    """What the weighted stages share: tables for the rows that an adjoint writes, where an input is read twice."""

    def __init__(self, stage: Gather, dtype: torch.dtype, device: torch.device) -> None:
        self._stage, self._dtype, self._device = stage, dtype, device

    @once
    def multiply_adds(self) -> int:
        return self._stage.multiply_adds()

    @once
    def _own(self) -> Tensor:
        """(input positions, inputs) rows that the adjoint writes: none twice."""
        reads = self._stage.reads
        if not self._stage.repeats:
            return reads
        live = reads >= 0
        own = torch.full_like(reads, -1)
        own[live] = torch.arange(int(live.sum()), dtype=torch.int32, device="cpu") + self._stage.place.scratch
        return own

    @once
    def _fold(self) -> RowSums | None:
        """Sums the rows of an input that is read twice, as a pooling winner of two windows is."""
        live = self._stage.reads >= 0
        return RowSums(self._stage.reads[live], self._own[live], None, self._device) if self._stage.repeats else None

    def _weight(self) -> Tensor:
        """(groups, outputs, inputs, taps)."""
        return self._stage.weight().to(self._dtype)

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Mode) -> None:
        self._run(False, inside, outside, self._stage.adds, mode)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Mode) -> None:
        if self._fold is None:
            self._run(True, outside, inside, self._stage.place.accumulate, mode)
        else:
            self._run(True, outside, outside, False, mode)
            self._fold.run(outside, inside, self._stage.place.accumulate)

    @once
    def _there(self):
        stage = self._stage
        return self._tables(stage.reads, stage.writes, stage.sites.reads, False)

    @once
    def _back(self):
        stage = self._stage
        return self._tables(stage.writes, self._own, stage.sites.feeds, True)

    def _tables(self, inside: Tensor, outside: Tensor, neighbours: Tensor, back: bool):
        raise NotImplementedError

    def _run(self, back: bool, block: Tensor, out: Tensor, accumulate: bool, mode: Mode) -> None:
        raise NotImplementedError


class GatherWork(_Weighted):
    """Convolutions, and layers at several positions, by gather-GEMM: in full precision by the compiled kernel where
    it is there, which spends no operation on a dead unit, else by Triton's."""

    @once
    def _exact(self) -> bool:
        return cuda.available()[0] and cuda.runs_on(self._device) and self._stage.sites.taps <= cuda.MOST_TAPS

    @once
    def _exact_there(self) -> cuda.GatherGemm:
        stage = self._stage
        return self._compiled(stage.reads, stage.writes, stage.sites.reads, False)

    @once
    def _exact_back(self) -> cuda.GatherGemm:
        stage = self._stage
        return self._compiled(stage.writes, self._own, stage.sites.feeds, True)

    def _compiled(self, inside: Tensor, outside: Tensor, neighbours: Tensor, back: bool) -> cuda.GatherGemm:
        weight = self._weight().permute(0, 2, 3, 1) if back else self._weight().transpose(2, 3)
        tables = {"inside": inside, "outside": outside, "neighbours": neighbours, "weight": weight.flatten(0, 1)}
        return cuda.GatherGemm(**{name: t.to(self._device).contiguous() for name, t in tables.items()},
                               groups=self._stage.sites.groups)

    def _tables(self, inside: Tensor, outside: Tensor, neighbours: Tensor, back: bool):
        from specxai.kernels.gather_gemm import gathering

        weight = self._weight().permute(0, 2, 3, 1) if back else self._weight().transpose(2, 3)
        return gathering(inside, outside, neighbours, weight.flatten(0, 1), self._stage.sites.groups, self._device)

    def _run(self, back: bool, block: Tensor, out: Tensor, accumulate: bool, mode: Mode) -> None:
        if mode.precision in FULL and self._exact:
            (self._exact_back if back else self._exact_there).run(block, out, accumulate)
            return
        from specxai.kernels.gather_gemm import gather_gemm

        gather_gemm(self._back if back else self._there, block, out, accumulate, mode.precision)


class DepthwiseWork(_Weighted):
    """Depthwise convolutions, which no tensor core helps: full precision always."""

    def _tables(self, inside: Tensor, outside: Tensor, neighbours: Tensor, back: bool):
        from specxai.kernels.depthwise import depthwise_tables

        return depthwise_tables(inside, outside, neighbours, self._weight()[:, 0, 0], self._device)

    def _run(self, back: bool, block: Tensor, out: Tensor, accumulate: bool, mode: Mode) -> None:
        from specxai.kernels.depthwise import depthwise

        depthwise(self._back if back else self._there, block, out, accumulate)


class PackedWork(_Weighted):
    """Fully connected layers of one position: one copy of their live weights for both directions.

    scratch   numbers a probe that parts of a split sum take
    """

    @once
    def scratch(self) -> int:
        from specxai.kernels.packed_gemm import most_part_rows

        return most_part_rows()

    @once
    def _there(self):
        from specxai.kernels.packed_gemm import packed

        stage = self._stage
        (reads,), (writes,), (under,) = stage.reads, stage.writes, stage.sites.reads
        live_in, live_out, taps = (rows.ge(0).nonzero().flatten() for rows in (reads, writes, under))
        weight = self._weight()[0]
        weight = weight[live_out.to(weight.device)][:, live_in.to(weight.device)][..., taps.to(weight.device)].sum(2)
        return packed(weight.to(self._device), reads[live_in], writes[live_out])

    @once
    def _back(self):
        (own,) = self._own
        return self._there.adjoint(own[own >= 0])

    def _run(self, back: bool, block: Tensor, out: Tensor, accumulate: bool, mode: Mode) -> None:
        from specxai.kernels.packed_gemm import packed_gemm

        packed_gemm(self._back if back else self._there, block, out, accumulate, mode.precision)
