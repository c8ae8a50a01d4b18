"""Gather-GEMM's other dataflow: live outputs are gathered, and all inputs of a position are read.

Where few of a site's outputs live, as before a max-pooling, computing all of them wastes more than reading dead inputs
as zeros.  Weights lie [output][tap, input], so that a live output's weights are one row.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from specxai.kernels.blocks import fetch, put, scaled, zeros
from specxai.kernels.lists import filled_up, live_lists, numbers_of
from specxai.kernels.precision import multiply
from specxai.kernels.split import part_of
from specxai.kernels.tile import PANELS

DEPTH = 32  # inputs of a chunk


@triton.jit
def gather_outputs_kernel(
    sites,
    channel,
    to,
    chunk_begin,
    chunk_at,
    chunk_weight,
    rows,
    weight,
    factor,
    made_factor,
    block,
    out,
    n_groups,
    n_outputs,
    weight_units,
    probe_units,
    in_units,
    out_units,
    MODE: tl.constexpr, ACCUMULATE: tl.constexpr, SPLIT: tl.constexpr, PROBES_FIRST: tl.constexpr,
    SCALES: tl.constexpr, SCALES_MADE: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_PROBES: tl.constexpr, BLOCK_IN: tl.constexpr,
):
    """A tile of BLOCK_OUT live outputs and BLOCK_PROBES probes of one site.

    sites          (programs,) site · groups + group
    channel, to    (programs · BLOCK_OUT,) an output's channel in the group, and its row of out, -1 for none
    chunk_begin    (sites · groups + 1,) the chunks before each
    chunk_at       (chunks,) which BLOCK_IN entries of rows
    chunk_weight   (chunks,) the place of its first input in a row of weights
    rows           (entries,) rows of block, -1 for a dead input
    weight         (groups · n_outputs, weight_units · 16)
    factor         of each entry of rows, if SCALES; made_factor of each of to, if SCALES_MADE
    *_units        of blocks: in multiples of UNIT, which tells the compiler how addresses are aligned
    SPLIT          a part of the sum, to a workspace (kernels/split.py)
    """
    site = tl.load(sites + tl.program_id(0))
    slot = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    p = tl.program_id(1) * BLOCK_PROBES + tl.arange(0, BLOCK_PROBES)
    k = tl.arange(0, BLOCK_IN)
    p_live = p < probe_units * UNIT
    w_row = ((site % n_groups) * n_outputs + tl.load(channel + slot)).to(tl.int64) * (weight_units * 16)
    total = zeros(BLOCK_OUT, BLOCK_PROBES, PROBES_FIRST, out.dtype.element_ty)
    first, last = part_of(tl.load(chunk_begin + site), tl.load(chunk_begin + site + 1), SPLIT)
    for i in range(first, last):
        at = tl.load(chunk_at + i) * BLOCK_IN + k
        z = fetch(block, tl.load(rows + at), p, p_live, in_units * UNIT, PROBES_FIRST)
        if SCALES:
            z = scaled(z, tl.load(factor + at), PROBES_FIRST)
        c = tl.load(chunk_weight + i) * BLOCK_IN + k
        if PROBES_FIRST:
            total = multiply(z, tl.load(weight + w_row[None, :] + c[:, None]), total, MODE)
        else:
            total = multiply(tl.load(weight + w_row[:, None] + c[None, :]), z, total, MODE)
    if SCALES_MADE:
        total = scaled(total, tl.load(made_factor + slot), PROBES_FIRST)
    if SPLIT:
        row = tl.program_id(2) * (tl.num_programs(0) * BLOCK_OUT) + slot
    else:
        row = tl.load(to + slot)
    put(total, out, row, p, p_live, out_units * UNIT, ACCUMULATE, PROBES_FIRST)


@dataclass(frozen=True)
class ByOutputs:
    """Tables of this dataflow on the device; see `gather_outputs_kernel`.

    live     (sites · groups, outputs) rows of out, -1 for none
    most     live outputs of a site
    chunks   of a site and group, on average
    factor   of each entry of rows, None for ones;  made_scale of each of live
    panels   outputs of a program -> sites, channel, to, made_factor
    """

    chunk_begin: Tensor
    chunk_at: Tensor
    chunk_weight: Tensor
    rows: Tensor
    weight: Tensor
    live: Tensor
    groups: int
    most: int
    chunks: int
    factor: Tensor | None = None
    made_scale: Tensor | None = None
    panels: dict[int, tuple[Tensor, Tensor, Tensor, Tensor | None]] = field(default_factory=dict)
    depth = DEPTH
    gathers = "outputs"

    def apart(self) -> ByOutputs:
        """The same tables, of which no panel is made yet."""
        return replace(self, panels={})

    def panel(self, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """sites, channel, to, made_factor: live outputs of each site, filled up to whole panels of `size`."""
        if size not in self.panels:
            lists, factor = live_lists(self.live), None
            to, channels, _ = filled_up(lists, size)
            if self.made_scale is not None:
                factor, _, _ = filled_up(numbers_of(lists, self.made_scale), size)
            each = -(-(self.live >= 0).sum(1) // size)
            sites = torch.arange(len(each), device=each.device).repeat_interleave(each).int()
            self.panels[size] = sites, channels, to, factor
        return self.panels[size]

    def programs(self, size: int) -> int:
        return len(self.panel(size)[0])

    def rows_of(self, size: int) -> Tensor:
        """Rows of out of each program's outputs, -1 for none."""
        return self.panel(size)[2]

    def run(self, block: Tensor, out: Tensor, accumulate: bool, mode: str, tile, unit: int, parts: int) -> None:
        sites, channel, to, made_factor = self.panel(tile.out)
        k = block.shape[1]
        gather_outputs_kernel[(len(sites), triton.cdiv(k, tile.probes), parts)](
            sites, channel, to, self.chunk_begin, self.chunk_at, self.chunk_weight, self.rows, self.weight, self.factor,
            made_factor, block, out, self.groups, self.live.shape[1], self.weight.shape[1] // 16,
            k // unit, block.stride(0) // unit, out.stride(0) // unit,
            MODE=mode, ACCUMULATE=accumulate, SPLIT=parts > 1, PROBES_FIRST=tile.probes_first,
            SCALES=self.factor is not None, SCALES_MADE=made_factor is not None, UNIT=unit,
            BLOCK_OUT=tile.out, BLOCK_PROBES=tile.probes, BLOCK_IN=DEPTH, num_warps=tile.warps, num_stages=tile.stages)


def chunks_by_outputs(inside: Tensor, neighbours: Tensor, some: Tensor, groups: int):
    """(rows, there): all inputs of each position and group in whole chunks, -1 for dead ones; and for each (site,
    group, tap, chunk) whether it is read, as one without a live input is not."""
    inputs = inside.shape[1] // groups
    blocks = -(-inputs // DEPTH)
    rows = inside.new_full((len(inside), groups, blocks * DEPTH), -1)
    rows[:, :, :inputs] = inside.reshape(len(inside), groups, inputs)
    alive = (rows.reshape(len(inside), groups, blocks, DEPTH) >= 0).any(3)
    alive = torch.cat([alive, alive.new_zeros(1, groups, blocks)])  # which -1 finds
    there = alive[neighbours.long()].transpose(1, 2)  # (sites, groups, taps, blocks)
    return rows.flatten(), there & some.reshape(-1, groups, 1, 1)


def by_outputs(inside: Tensor, live: Tensor, neighbours: Tensor, weight: Tensor, groups: int,
               scale: Tensor | None = None, made_scale: Tensor | None = None) -> ByOutputs:
    """Tables from `gathering`'s, on one device: `live` and `made_scale` are (sites · groups, outputs)."""
    rows, there = chunks_by_outputs(inside, neighbours, (live >= 0).any(1), groups)
    taps, blocks = there.shape[2:]
    site, group, tap, chunk = there.nonzero(as_tuple=True)
    each = there.sum((2, 3)).flatten()
    begin = torch.cat([each.new_zeros(1), each.cumsum(0)])
    at = (neighbours.long()[site, tap] * groups + group) * blocks + chunk
    inputs = weight.shape[2]
    full = weight.new_zeros(len(weight), taps, blocks * DEPTH)
    full[:, :, :inputs] = weight
    factor = None
    if scale is not None:
        factor = scale.new_zeros(len(inside), groups, blocks * DEPTH)
        factor[:, :, :inputs] = scale.reshape(len(inside), groups, inputs)
        factor = factor.flatten()
    most = int((live >= 0).sum(1).max()) if live.numel() else 0
    return ByOutputs(begin.int(), at.int(), (tap * blocks + chunk).int(), rows, full.flatten(1).to(live.device), live,
                     groups, most, len(at) // max(1, int((each > 0).sum())), factor, made_scale)


def padded_outputs(live: Tensor) -> Tensor:
    """(sites · groups,) outputs that are computed, in panels of the smallest size."""
    return -(-(live >= 0).sum(1) // PANELS[0]) * PANELS[0]
