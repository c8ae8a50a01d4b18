"""Lowers stages to Triton kernels; what they cannot take runs on the torch engine, and says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specxai.backends.cuda.graphs import Graphs
from specxai.backends.cuda.groups import GroupWork
from specxai.backends.cuda.scaled import with_scaled
from specxai.backends.cuda.stages import FULL, DepthwiseWork, GatherWork, PackedWork, SumWork
from specxai.backends.engine import Executable
from specxai.backends.opaque import OpaqueTerms
from specxai.backends.torch import TorchEngine
from specxai.plan import Gather, Opaque, Plan, Stage, Sum

LANES = 4  # numbers that a row is filled up to: sixteen bytes of float32
INDICES = (1 << 31) - 1  # of the kernels' tables
# Float32-grade products on tensor cores, and those that seek: three products each, of which bfloat16's run at twice
# the rate.  To be measured on a card.
PRECISION, ROUGH = "tf32x3", "bf16x3"
FEW, ROUGH_COST = 8, 0.6


@dataclass(frozen=True)
class Mode:
    """How a product runs.

    precision   as in `specxai.kernels.precision`
    """

    precision: str


class CudaEngine:
    """Triton kernels over blocks on one device."""

    name = "cuda"

    def __init__(self, dtype: torch.dtype, device: torch.device, precision: str = PRECISION) -> None:
        self.dtype, self.device = dtype, device
        self.precision = "fp64" if dtype is torch.float64 else precision
        self.has_rough = dtype is torch.float32
        self.grade = f"{self.precision}, sought in {ROUGH}" if self.has_rough else "float64"
        self._torch = TorchEngine(dtype, device)

    def lower(self, stage: Stage) -> Executable:
        if isinstance(stage, Opaque):
            return OpaqueTerms(stage, self.lower)
        reason = too_large(stage)
        if reason is not None:
            return Instead(self._torch.lower(stage), self._torch.name, reason)
        if isinstance(stage, Gather):
            kind = PackedWork if stage.packed else DepthwiseWork if stage.depthwise else GatherWork
            return kind(stage, self.dtype, self.device)
        if isinstance(stage, Sum):
            return SumWork(stage, self.dtype, self.device)
        return GroupWork(stage, self.dtype, self.device)

    def lower_plan(self, plan: Plan) -> list[Executable]:
        """All stages: a copy with factors becomes part of the layer that reads it, on tensor cores."""
        work = [self.lower(stage) for stage in plan.stages]
        return work if self.precision in FULL else with_scaled(work, plan, self.dtype, self.device)

    def graphs(self) -> Graphs | None:
        return Graphs(self.device) if self.device.type == "cuda" else None

    def stride_of(self, probes: int) -> int:
        return -(-probes // LANES) * LANES

    def empty(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, width, dtype=self.dtype, device=self.device)

    def columns(self, block: Tensor) -> Tensor:
        return block.contiguous()

    def mode(self, probes: int, rough: bool, rows: int, work: Sequence[Executable]) -> Mode:
        return Mode(ROUGH if rough and self.has_rough else self.precision)

    def room(self, columns: int, rows: int, work: Sequence[Executable]) -> int:
        """The arena of a pass that is captured is its own, beside one that others share."""
        return (2 if self.device.type == "cuda" else 1) * rows * self.stride_of(columns)

    def column_cost(self, columns: int, rough: bool) -> float:
        """From the rates of the instructions and the eight probes that they take: no card has been asked."""
        return max(1.0, FEW / columns) * (ROUGH_COST if rough else 1.0)


class Instead:
    """A stage that another engine runs.

    instead   (its name, why)
    """

    def __init__(self, work: Executable, engine: str, reason: str) -> None:
        self._work, self.instead = work, (engine, reason)

    @property
    def multiply_adds(self) -> int:
        return self._work.multiply_adds

    @property
    def kept(self) -> int:
        return self._work.kept

    def scratch(self, stride: int) -> int:
        return self._work.scratch(stride)

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        self._work.forward(inside[:, :probes], outside[:, :probes], probes, None)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        self._work.adjoint(outside[:, :probes], inside[:, :probes], probes, None)


def too_large(stage: Stage) -> str | None:
    """Why the kernels cannot index the stage; None where they can."""
    sizes = {"units": max(stage.reads.numel(), stage.writes.numel())}
    if isinstance(stage, Gather):
        sites = stage.sites
        pairs = max(len(stage.writes), len(stage.reads)) * sites.taps * sites.groups
        sizes = {"weights": sites.weight.numel(), **sizes, "pairs of positions": pairs}
    for what, size in sizes.items():
        if size > INDICES:
            return f"{size:,} {what}, more than 32-bit indices reach"
    return None
