"""Depthwise convolutions as sparse sums of rows: with one input and one output a group there is nothing to multiply in
tiles, and what bounds them is how many rows are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specxai import native
from specxai._once import once
from specxai.plan import Gather

if TYPE_CHECKING:
    from specxai.backends.native.engine import Mode


def is_depthwise(stage: Gather) -> bool:
    """Has every group one input and one output?"""
    sites = stage.sites
    return sites.groups > 1 and sites.inputs == sites.outputs == sites.groups


class DepthwiseWork:
    """Runs a depthwise `Gather` stage; each direction's entries are made by its first run."""

    def __init__(self, stage: Gather) -> None:
        self._stage: Gather | None = stage  # until both directions have entries of their own

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Mode) -> None:
        entries, adds, _ = self._forward
        entries.run(inside, outside, probes, adds)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Mode) -> None:
        entries, accumulate = self._adjoint
        entries.run(outside, inside, probes, accumulate)

    @property
    def multiply_adds(self) -> int:
        return self._forward[2]

    @once
    def _forward(self) -> tuple[native.RowSum, bool, int]:
        stage = self._stage
        entries, count = _entries(stage.reads, stage.writes, stage.sites.reads, stage.weight())
        self._release("_adjoint")
        return entries, stage.adds, count

    @once
    def _adjoint(self) -> tuple[native.RowSum, bool]:
        stage = self._stage
        entries, _ = _entries(stage.writes, stage.reads, stage.sites.feeds, stage.weight())
        self._release("_forward")
        return entries, stage.place.accumulate

    def _release(self, other: str) -> None:
        if other in self.__dict__:
            self._stage = None


def _entries(inside: Tensor, outside: Tensor, neighbours: Tensor, weight: Tensor) -> tuple[native.RowSum, int]:
    """Each live output sums the live inputs of its channel under the taps, of which there is one at least; and how many
    entries that makes.

    inside, outside   (positions, channels) rows; neighbours (positions outside, taps); weight (channels, 1, 1, taps)
    """
    channels, taps = inside.shape[1], neighbours.shape[1]
    inside = torch.cat([inside, inside.new_full((1, channels), -1)])  # which -1 finds
    weight = weight.reshape(channels, taps).T
    to, source, scale = [], [], []
    for tap in range(taps):
        rows = inside[neighbours[:, tap].long()]
        at = ((rows >= 0) & (outside >= 0)).flatten().nonzero().flatten()
        to.append(outside.flatten()[at])
        source.append(rows.flatten()[at])
        scale.append(weight[tap][at % channels])
    made = native.RowSum(to=torch.cat(to), source=torch.cat(source), scale=torch.cat(scale), dtype=weight.dtype)
    return made, sum(map(len, to))
