"""Stages of a plan as calls of Triton kernels.  Each direction's tables are made, and uploaded, by its first run.

Blocks of the arena have empty lanes behind the probes, which gather stages compute with the rest: addresses of whole
lanes are aligned, and what lies in them reaches no probe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from specxai._once import once
from specxai.backends.cuda import tuned
from specxai.backends.cuda.ways import Chosen, Way, described, gather_ways, packed_ways
from specxai.native import cuda
from specxai.plan import Gather, Sum

if TYPE_CHECKING:
    from specxai.backends.cuda.engine import Mode

FULL = ("fp32", "fp64")  # precisions without a tensor core


CHUNK = 16  # units that a list is filled up to, at least
WAYS = 3  # of gathering


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
        # Rows read and written, then in each direction an entry's and its sum's.
        self.kept = (32 if self._scale is None else 32 + 3 * dtype.itemsize) * len(stage.reads)

    def scratch(self, stride: int) -> int:
        return 0

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


class _Weighted(ABC):
    """What the weighted stages share: tables for the rows that an adjoint writes, where an input is read twice."""

    def __init__(self, stage: Gather, dtype: torch.dtype, device: torch.device) -> None:
        self._stage, self._dtype, self._device = stage, dtype, device

    @once
    def multiply_adds(self) -> int:
        return self._stage.multiply_adds()

    @once
    def kept(self) -> int:
        """An estimate from above: in both directions rows and channels of every unit, dead ones too and filled up to
        whole chunks, and the chunks of every pair of positions."""
        stage, sites = self._stage, self._stage.sites
        sides = (len(stage.reads), sites.inputs // sites.groups), (len(stage.writes), sites.outputs // sites.groups)
        filled = sum(positions * -(-units // CHUNK) * CHUNK for positions, units in sides)
        chunks = sum(positions * -(-units // CHUNK) for positions, units in sides)
        return sites.groups * (36 * filled + 8 * sites.taps * chunks)

    def scratch(self, stride: int) -> int:
        return 0

    @once
    def _apart(self) -> tuple[Tensor, SumWork | None]:
        """(rows that the adjoint writes, the copy whose adjoint folds them where an input is read twice)."""
        own, copy = self._stage.apart()
        return own, None if copy is None else SumWork(copy, self._dtype, self._device)

    def _weight(self) -> Tensor:
        """(groups, outputs, inputs, taps)."""
        return self._stage.weight().to(self._dtype)

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Mode) -> None:
        self._run(False, inside, outside, self._stage.adds, mode)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Mode) -> None:
        _, copy = self._apart
        if copy is None:
            self._run(True, outside, inside, self._stage.place.accumulate, mode)
        else:
            self._run(True, outside, outside, False, mode)
            copy.adjoint(outside, inside, probes, mode)

    def _sides(self, back: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(rows that are read, rows that are written, which positions those read) of one direction."""
        stage = self._stage
        if back:
            return stage.writes, self._apart[0], stage.sites.feeds
        return stage.reads, stage.writes, stage.sites.reads

    @once
    def _there(self):
        return self._tables(False)

    @once
    def _back(self):
        return self._tables(True)

    @abstractmethod
    def _tables(self, back: bool):
        """What the kernel reads in one direction."""

    @abstractmethod
    def _run(self, back: bool, block: Tensor, out: Tensor, accumulate: bool, mode: Mode) -> None:
        """One direction, on the kernel."""


class _Multiplied(_Weighted):
    """Products that run in several ways, of which the fastest is chosen where it can be measured
    (`specxai.backends.cuda.tuned`), the counted one elsewhere."""

    kind = ""  # in the key of a choice

    def __init__(self, stage: Gather, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(stage, dtype, device)
        self._chosen: dict[bool, Chosen] = {}

    def scratch(self, stride: int) -> int:
        from specxai.kernels.checks import reach
        from specxai.kernels.split import most_part_rows

        if tuned.choices(self._device) is None:
            return most_part_rows() * stride
        # What ways are tried into has every row of the block up to the last that is written.
        return stride * (most_part_rows() + max(reach(rows) for rows in (self._stage.writes, self._apart[0])))

    def _run(self, back: bool, block: Tensor, out: Tensor, accumulate: bool, mode: Mode) -> None:
        choices = tuned.choices(self._device)
        if choices is None:
            self._counted(back, block, out, accumulate, mode.precision)
            return
        if back not in self._chosen:
            inside, outside, _ = self._sides(back)
            groups, *sides, taps = self._weight_shape()
            weight = groups, *(sides[::-1] if back else sides), taps
            self._chosen[back] = Chosen(choices, described(self.kind, back, inside, outside, weight))
        self._chosen[back].run(lambda *width: self._ways(back, *width), block, out, accumulate, mode.precision)

    def _weight_shape(self) -> tuple[int, int, int, int]:
        """(groups, outputs, inputs, taps)."""
        sites = self._stage.sites
        return sites.groups, sites.outputs // sites.groups, sites.inputs // sites.groups, sites.taps

    @abstractmethod
    def _ways(self, back: bool, probes: int, precision: str) -> Iterator[Way]:
        """The counted way first."""

    @abstractmethod
    def _counted(self, back: bool, block: Tensor, out: Tensor, accumulate: bool, precision: str) -> None:
        """One direction in the counted way."""


class GatherWork(_Multiplied):
    """Convolutions, and layers at several positions, by gather-GEMM: in full precision by the compiled kernel where
    it is there, which spends no operation on a dead unit, else by Triton's."""

    kind = "gather"
    _numbers = 1  # of 32 bits with every entry of a table

    def __init__(self, stage: Gather, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(stage, dtype, device)
        # (adjoint, gathers) -> tables that no count has chosen
        self._others: WeakValueDictionary[tuple[bool, str], Any] = WeakValueDictionary()

    @property
    def kept(self) -> int:
        # Other widths may gather what the counted choice does not, by tables of their own.
        tuned_here = tuned.choices(self._device) is not None
        tables = super().kept * self._numbers * (WAYS if tuned_here else 1)
        return tables + sum(self._packed(back, tuned_here) for back in (False, True))

    def _packed(self, back: bool, tuned_here: bool) -> int:
        """Bytes of weights packed per site where one direction may run with them, and of the lists beside them."""
        from specxai.kernels.gather_sites import may_pack

        # Packed weights are at least as many as multiply-adds, which spares most layers the counts.
        if not may_pack(self.multiply_adds, self._stage.sites.weight.numel(), self._dtype):
            return 0
        counts = self._counts_back if back else self._counts_there
        if "sites" not in (counts.within(tuned.BEYOND) if tuned_here else [counts.chosen]):
            return 0
        return counts.packed + counts.packed // 7

    @once
    def _counts_there(self):
        return self._counts(False)

    @once
    def _counts_back(self):
        return self._counts(True)

    def _counts(self, back: bool):
        from specxai.kernels.gather_counts import count_ways

        return replace(count_ways(*self._sides(back), self._stage.sites.groups, self._dtype), merged=None)

    @once
    def _exact(self) -> bool:
        return cuda.available()[0] and cuda.runs_on(self._device) and self._stage.sites.taps <= cuda.MOST_TAPS

    @once
    def _exact_there(self) -> cuda.GatherGemm:
        return self._compiled(False)

    @once
    def _exact_back(self) -> cuda.GatherGemm:
        return self._compiled(True)

    def _compiled(self, back: bool) -> cuda.GatherGemm:
        inside, outside, neighbours = (t.to(self._device).contiguous() for t in self._sides(back))
        return cuda.GatherGemm(inside=inside, outside=outside, neighbours=neighbours,
                               weight=self._by_output(back).to(self._device).contiguous(),
                               groups=self._stage.sites.groups)

    def _by_output(self, back: bool) -> Tensor:
        """(groups · outputs, taps, inputs) of one direction."""
        weight = self._weight().permute(0, 2, 3, 1) if back else self._weight().transpose(2, 3)
        return weight.flatten(0, 1)

    def _tables(self, back: bool, prefer: str | None = None):
        from specxai.kernels.gather_gemm import gathering

        return gathering(*self._sides(back), self._by_output(back), self._stage.sites.groups, self._device, prefer,
                         **self._factors(back))

    def _factors(self, back: bool) -> dict[str, Tensor]:
        """What units are multiplied by, as `gathering` takes it."""
        return {}

    def _other(self, back: bool, gathers: str):
        tables = self._others.get((back, gathers))
        if tables is None:
            tables = self._others[back, gathers] = self._tables(back, gathers)
        return tables

    def _ways(self, back: bool, probes: int, precision: str) -> Iterator[Way]:
        return gather_ways(self._back if back else self._there, lambda gathers: self._other(back, gathers), probes,
                           precision)

    def _run(self, back: bool, block: Tensor, out: Tensor, accumulate: bool, mode: Mode) -> None:
        if mode.precision in FULL and self._exact:
            (self._exact_back if back else self._exact_there).run(block, out, accumulate)
        else:
            super()._run(back, block, out, accumulate, mode)

    def _counted(self, back: bool, block: Tensor, out: Tensor, accumulate: bool, precision: str) -> None:
        from specxai.kernels.gather_gemm import gather_gemm

        gather_gemm(self._back if back else self._there, block, out, accumulate, precision)


class DepthwiseWork(_Weighted):
    """Depthwise convolutions, which no tensor core helps: full precision always."""

    @property
    def kept(self) -> int:
        stage = self._stage
        pairs = stage.sites.taps * (len(stage.reads) + len(stage.writes))
        return 16 * (stage.reads.numel() + stage.writes.numel()) + 4 * pairs

    def _tables(self, back: bool):
        from specxai.kernels.depthwise import depthwise_tables

        return depthwise_tables(*self._sides(back), self._weight()[:, 0, 0], self._device)

    def _run(self, back: bool, block: Tensor, out: Tensor, accumulate: bool, mode: Mode) -> None:
        from specxai.kernels.depthwise import depthwise

        depthwise(self._back if back else self._there, block, out, accumulate)


class PackedWork(_Multiplied):
    """Fully connected layers of one position: one copy of their live weights for both directions."""

    kind = "packed"

    def _ways(self, back: bool, probes: int, precision: str) -> Iterator[Way]:
        return packed_ways(self._back if back else self._there, probes, precision)

    def _tables(self, back: bool):
        from specxai.kernels.packed_gemm import packed

        if back:
            (own,), _ = self._apart
            return self._there.adjoint(own[own >= 0])
        stage = self._stage
        (reads,), (writes,), (under,) = stage.reads, stage.writes, stage.sites.reads
        live_in, live_out, taps = (rows.ge(0).nonzero().flatten() for rows in (reads, writes, under))
        weight = self._weight()[0]
        weight = weight[live_out.to(weight.device)][:, live_in.to(weight.device)][..., taps.to(weight.device)].sum(2)
        return packed(weight.to(self._device), reads[live_in], writes[live_out])

    def _counted(self, back: bool, block: Tensor, out: Tensor, accumulate: bool, precision: str) -> None:
        from specxai.kernels.packed_gemm import packed_gemm

        packed_gemm(self._back if back else self._there, block, out, accumulate, precision)
