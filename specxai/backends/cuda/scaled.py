"""A copy of rows times factors, as a GELU needs before the next layer, made part of that layer.

Where a layer's inputs have a factor each, other at every position, no weight can take it: a plan copies the rows, times
their factors, for that layer alone.  The copies of an MLP's hidden units are a fifth of what a GPT-2 block moves.  Here
the layer reads the rows themselves and multiplies, forward as they come and in the adjoint before they go.  That takes
rows that are still there: of a layer that adds onto a residual stream, not of one whose outputs take their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specxai.backends.cuda.stages import GatherWork
from specxai.backends.engine import Executable
from specxai.plan import Gather, Plan, Stage, Sum
from specxai.plan.stages import Span


@dataclass(frozen=True)
class Scaled:
    """The layer over the rows that were copied, and each one's factor, (input positions, inputs)."""

    stage: Gather
    factor: Tensor
    copied: int


def scaled_pairs(plan: Plan, dtype: torch.dtype) -> dict[int, Scaled]:
    """Place of a copy -> what it and the layer behind it become."""
    found, read = {}, {chain.first for chain in plan.chains}  # whose rows matrices of positions need as well
    for k, (copy, layer) in enumerate(zip(plan.stages, plan.stages[1:], strict=False)):
        if plan.direct not in (k, k + 1) and k + 1 not in read and (pair := _pair(copy, layer, dtype)) is not None:
            found[k] = pair
    return found


def _pair(copy: Stage, layer: Stage, dtype: torch.dtype) -> Scaled | None:
    # A sum of one operand and of the layer's own step, in front of it, is a copy that the layer alone reads.
    if not (isinstance(copy, Sum) and isinstance(layer, Gather) and copy.step == layer.step and len(copy.sizes) == 1):
        return None
    factors = copy.scale(dtype)
    if factors is None or layer.packed or layer.depthwise or layer.repeats or not len(copy.reads):
        return None
    if len(copy.reads.unique()) != len(copy.reads) or len(copy.writes.unique()) != len(copy.writes):
        return None
    live = layer.reads >= 0
    at = torch.full((int(torch.cat([copy.writes, layer.reads[live]]).max()) + 1,), -1, dtype=torch.int64, device="cpu")
    at[copy.writes.long()] = torch.arange(len(copy.writes), device="cpu")
    entry = at[layer.reads.clamp_min(0).long()]
    # The rows that are read must still be there when the layer runs, and its outputs when the copy's adjoint would.
    outputs = layer.writes[layer.writes >= 0]
    overlap = torch.isin(copy.reads, outputs).any() or _within(copy.reads, layer.place.fresh)
    if bool((entry[live] < 0).any()) or bool(overlap) or _within(outputs, copy.place.zero):
        return None
    reads = torch.where(live, copy.reads[entry.clamp_min(0)], -1)
    factor = torch.where(live, factors[entry.clamp_min(0)], 0)
    place = replace(layer.place, accumulate=copy.place.accumulate)
    return Scaled(replace(layer, reads=reads, place=place), factor, len(copy.reads))


def _within(rows: Tensor, spans: Sequence[Span]) -> bool:
    return any(bool(((rows >= start) & (rows < stop)).any()) for start, stop in spans)


class ScaledGather(GatherWork):
    """Runs the layer with the factors, by Triton's kernel on tensor cores."""

    _exact = False
    kind = "scaled gather"

    def __init__(self, pair: Scaled, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(pair.stage, dtype, device)
        self._factor = pair.factor

    @property
    def kept(self) -> int:
        # In each direction a number for every entry of a table of 32 bits.
        return super().kept * 2

    def _factors(self, back: bool) -> dict[str, Tensor]:
        return {"made_scale" if back else "scale": self._factor}


class Half:
    """One direction of such a layer: forward in the layer's place, the adjoint in the copy's, where what it writes has
    been cleared.

    saved   rows that are neither read nor written any more
    """

    def __init__(self, work: ScaledGather, forward: bool, saved: int) -> None:
        self._work, self._forward, self.saved = work, forward, saved
        self.multiply_adds = work.multiply_adds if forward else 0

    @property
    def kept(self) -> int:
        return self._work.kept if self._forward else 0

    def scratch(self, stride: int) -> int:
        return self._work.scratch(stride)

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode) -> None:
        if self._forward:
            self._work.forward(inside, outside, probes, mode)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode) -> None:
        if not self._forward:
            self._work.adjoint(outside, inside, probes, mode)


def with_scaled(work: list[Executable], plan: Plan, dtype: torch.dtype, device: torch.device) -> list[Executable]:
    """The executables of a plan's stages, with such pairs in place of copies and layers."""
    work = list(work)
    for k, pair in scaled_pairs(plan, dtype).items():
        if hasattr(work[k + 1], "instead"):  # beyond the kernels' indices
            continue
        made = ScaledGather(pair, dtype, device)
        work[k], work[k + 1] = Half(made, False, 2 * pair.copied), Half(made, True, 0)
    return work
