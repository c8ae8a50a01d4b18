"""Which way a gather-GEMM runs in: operations and bytes of each, counted, at the rates of a card.

Of weights that sites share a pass reads one copy from memory, whatever the number of sites; of those packed per site it
reads all.  At 64 probes a number that is read takes an H100 as long as 98 multiply-adds in TF32x3, so that packing pays
where it leaves about half of what the others compute, or less.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specxai.kernels.gather_inputs import NARROW, depth_for, under, whole
from specxai.kernels.gather_outputs import DEPTH, chunks_by_outputs, padded_outputs
from specxai.kernels.gather_sites import MOST_ENTRIES, may_pack, packed_numbers
from specxai.kernels.lists import tap_rows
from specxai.kernels.tile import PANELS, filled

MULTIPLY_ADDS, BYTES = 82e12, 3.35e12  # a second, of an H100: in TF32x3, and from memory
PROBES = 64  # of a typical block
FEWER = 0.8  # of operations, at which gathering outputs is worth reading dead inputs; of time, packing its memory
# Lists of a site's own, over all taps, where those of positions would be that much longer by filling up their chunks,
# as with three channels; and where sites · taps · inputs are no more than so many.
MERGE, MOST_MERGED = 1.25, 1 << 26


@dataclass(frozen=True)
class Counts:
    """What the ways of one direction take: "inputs", "outputs" and, where its weights are not too many, "sites".

    entries      multiply-adds of one probe, live outputs times live inputs
    operations   of each way, multiply-adds of one probe
    seconds      of each way, for PROBES of them: operations or bytes, whichever takes longer
    packed       bytes of weights packed per site, 0 where there are too many
    depth        entries of a chunk of gathered inputs
    merged       (inside, neighbours) where each site has a list of its own over all taps, None where it has none
    """

    entries: int
    operations: dict[str, int]
    seconds: dict[str, float]
    packed: int
    depth: int
    merged: tuple[Tensor, Tensor] | None

    @property
    def chosen(self) -> str:
        return "sites" if self.seconds.get("sites", torch.inf) < FEWER * self.seconds[self._shared] else self._shared

    @property
    def _shared(self) -> str:
        return "outputs" if self.operations["outputs"] < FEWER * self.operations["inputs"] else "inputs"

    def within(self, times: float) -> list[str]:
        """The chosen way, then others that take at most so many times as long as it; of those whose weights sites share
        none of as many times the operations of the other, and weights packed per site no longer, as they take memory.
        """
        most, few = times * self.seconds[self.chosen], times * self.operations[self._shared]
        found = [way for way in ("inputs", "outputs") if self.seconds[way] <= most and self.operations[way] <= few]
        found += ["sites"] if self.seconds.get("sites", torch.inf) <= self.seconds[self.chosen] else []
        return [self.chosen, *(way for way in found if way != self.chosen)]


def count_ways(inside: Tensor, outside: Tensor, neighbours: Tensor, groups: int, dtype: torch.dtype) -> Counts:
    """Of `gathering`'s tables, on one device, with weights of this dtype."""
    sites, taps, inputs = *neighbours.shape, inside.shape[1] // groups
    live = outside.reshape(sites * groups, -1)
    outputs = (live >= 0).sum(1)
    some = (outputs > 0).reshape(sites, groups)
    counts = (inside >= 0).reshape(-1, groups, inputs).sum(2)  # (positions, groups)
    read = under(counts, neighbours) * some[:, :, None]  # (sites, groups, taps) live inputs
    own = read.sum(2)
    entries = int((own.flatten() * outputs).sum())

    depth, merged = depth_for(counts), None
    chunked = under(whole(counts, depth), neighbours).sum(2)
    if taps > 1 and read.numel() * inputs <= MOST_MERGED \
            and int(whole(read, depth).sum()) > MERGE * int(whole(own, NARROW).sum()):
        merged = (tap_rows(inside, neighbours, groups).reshape(sites, -1),
                  torch.arange(sites, dtype=torch.int32, device=inside.device)[:, None])
        depth = depth_for(own)
        chunked = whole(own, depth)
    _, there = chunks_by_outputs(*(merged or (inside, neighbours)), some.flatten(), groups)
    operations = {"inputs": int((chunked.flatten() * _panelled(live)).sum()),
                  "outputs": int(DEPTH * (there.sum((2, 3)).flatten() * padded_outputs(live)).sum())}
    weights = live.shape[1] * groups * taps * inputs
    numbers = dict.fromkeys(operations, weights)
    packed = packed_numbers(own.flatten(), outputs)
    fits = may_pack(packed, weights, dtype) and read.numel() * inputs <= MOST_ENTRIES
    if fits:
        operations["sites"] = numbers["sites"] = packed
    rows = int(counts.sum()) + int(outputs.sum())
    seconds = {way: max(PROBES * operations[way] / MULTIPLY_ADDS,
                        dtype.itemsize * (numbers[way] + PROBES * rows) / BYTES) for way in operations}
    return Counts(entries, operations, seconds, packed * dtype.itemsize if fits else 0, depth, merged)


def _panelled(live: Tensor) -> Tensor:
    """(sites · groups,) outputs that are computed where those of a panel of 128 are if one of them lives."""
    width = filled(live.shape[1])
    panel = min(width, PANELS[-1])
    there = torch.nn.functional.pad(live >= 0, (0, width - live.shape[1]))
    return there.reshape(len(live), width // panel, panel).any(2).sum(1) * panel
