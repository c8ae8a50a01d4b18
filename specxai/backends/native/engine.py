"""Lowers stages to compiled kernels, and states what was measured of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specxai import native
from specxai.backends.engine import Executable
from specxai.backends.native.bfloat16 import InBfloat16
from specxai.backends.native.depthwise import MOST_TAPS, DepthwiseWork
from specxai.backends.native.gather import GatherWork
from specxai.backends.native.groups import GroupWork
from specxai.backends.native.sums import SumWork
from specxai.backends.opaque import OpaqueTerms
from specxai.plan import Gather, LowRank, Stage, Sum
from specxai.precision import has_bfloat16

# Time of a column of a product of so many, over its live operations at the multiply-add peak: VGG11-BN's convolutions
# in a solver, forward and adjoint, two cores with AVX-512.  Below 16 the lanes are units, of which half are dead; rough
# products pack the weights of each position for as many columns as there are.
COSTS = {1: 6.7, 2: 3.6, 4: 2.3, 8: 2.8, 16: 1.75, 32: 1.25, 64: 1.1}
ROUGH_COSTS = {16: 1.35, 32: 0.95, 64: 0.75}


@dataclass(frozen=True)
class Mode:
    """How a product runs.

    rough        with factors of 16 bits
    may_spread   as in `native.GatherGemm`
    """

    rough: bool = False
    may_spread: bool = True


class NativeEngine:
    """`rough` products multiply integers of 12 and 13 bits, where the processor does that at twice the rate; a few
    columns, fully connected layers of one position and small stages are in full precision."""

    name = "native"

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.has_rough = dtype is torch.float32 and native.has_rough()
        self.grade = "float32, sought in 16-bit integers" if self.has_rough else str(dtype).removeprefix("torch.")

    def lower(self, stage: Stage) -> Executable:
        if isinstance(stage, Gather):
            if stage.sites.weight.dtype is torch.bfloat16:
                return InBfloat16(stage)
            sums = stage.depthwise and stage.sites.taps <= MOST_TAPS
            return DepthwiseWork(stage) if sums else GatherWork(stage)
        if isinstance(stage, Sum):
            return SumWork(stage, self.dtype)
        if isinstance(stage, LowRank):
            return GroupWork(stage)
        return OpaqueTerms(stage, self.lower)

    @property
    def rough_matrices(self) -> torch.dtype | None:
        """Of matrices of positions for rough products; None for the full one."""
        return torch.bfloat16 if self.has_rough and has_bfloat16("cpu") else None

    def times(self, left: Tensor) -> Callable[[Tensor, Tensor], None]:
        """As `specxai.plan.chains.matmul`, at the rate of the kernels."""
        (m, h), made = left.shape, {}

        def multiply(right: Tensor, into: Tensor) -> None:
            p, _, n = right.shape
            if n % native.PROBE_UNIT:
                return torch.matmul(left, right, out=into)
            if p not in made:
                rows = [torch.arange(p * k, dtype=torch.int32).reshape(p, k) for k in (h, m, 1)]
                made[p] = native.GatherGemm(inside=rows[0], outside=rows[1], neighbours=rows[2], weight=left[:, None],
                                            own=True)
            made[p].run(right.reshape(p * h, n), into.view(p * m, n))

        return multiply

    def graphs(self) -> None:
        return None

    def stride_of(self, probes: int) -> int:
        return native.stride_of(probes)

    def empty(self, rows: int, width: int) -> Tensor:
        return native.empty(rows, width, dtype=self.dtype)

    def columns(self, block: Tensor) -> Tensor:
        return block if native.is_columns(block) else block.contiguous()

    def mode(self, probes: int, rough: bool, rows: int, work: Sequence[Executable]) -> Mode:
        stride = native.stride_of(probes)
        return Mode(rough) if stride >= native.PROBE_UNIT else Mode(may_spread=_may_spread(stride, rows, work))

    def room(self, columns: int, rows: int, work: Sequence[Executable]) -> int:
        most = native.stride_of(columns)
        # The most of any narrower run, so that the room never falls as columns are added.
        narrow = [s for s in (1, 2, 4, 8) if s <= most and _may_spread(s, rows, work)]
        return max(rows * most, (rows + _spread(work)) * max(narrow, default=0))

    def column_cost(self, columns: int, rough: bool) -> float:
        """What was measured at the widest of COSTS that is no wider."""
        if native.simd_level() == "scalar":
            return max(1.0, 16 / columns)
        table = ROUGH_COSTS if rough and columns >= min(ROUGH_COSTS) else COSTS
        return table[max(width for width in table if width <= columns)]


def _spread(work: Sequence[Executable]) -> int:
    return max((item.spread for item in work if isinstance(item, GatherWork)), default=0)


def _may_spread(stride: int, rows: int, work: Sequence[Executable]) -> bool:
    """May a narrow run lay its inputs out once more without taking more memory than a wide one?"""
    return stride * (rows + _spread(work)) <= native.PROBE_UNIT * rows
