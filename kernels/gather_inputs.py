"""Gather-GEMM's tables and kernel where live inputs are gathered, over weights that sites share or over their own.

Live inputs lie in lists, filled up to whole chunks of `WIDE` or `NARROW`; a site walks the chunks of its neighbours,
one loop over all taps.  Where positions have few of them, or weights are a site's own, it has one list over all taps
instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from specxai.kernels.blocks import fetch, put, scaled, zeros
from specxai.kernels.lists import filled_up, live_lists, live_places, numbers_of
from specxai.kernels.precision import multiply
from specxai.kernels.split import part_of
from specxai.kernels.tile import PANELS, Tile, filled

WIDE, NARROW = 32, 16  # entries of a chunk
FEW_MORE = 1.2  # entries, where larger chunks or panels are worth filling up


@triton.jit
def gather_gemm_kernel(
    tiles,
    chunk_begin,
    chunk_at,
    chunk_weight,
    rows,
    channel,
    weight,
    outside,
    factor,
    made_factor,
    block,
    out,
    n_panels,
    n_groups,
    group_depth,
    probe_units,
    in_units,
    out_units,
    MODE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SPLIT: tl.constexpr,
    PROBES_FIRST: tl.constexpr,
    SCALES: tl.constexpr,
    SCALES_MADE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_PROBES: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """A tile of BLOCK_OUT outputs and BLOCK_PROBES probes of one site.

    tiles          (programs,) site and group · n_panels + panel of outputs
    chunk_begin    (sites · groups + 1,) the chunks before each
    chunk_at       (chunks,) which BLOCK_IN entries of rows and channel
    chunk_weight   (chunks,) the tap's first row of the group's weights
    rows, channel  (entries,) a live input's row of block, -1 for none, and its channel in the group
    weight         (groups · group_depth, n_panels · BLOCK_OUT)
    outside        (sites · groups, n_panels · BLOCK_OUT) rows of out, -1 for none
    factor         of each entry of rows, if SCALES; made_factor of each of outside, if SCALES_MADE
    *_units        in multiples of UNIT, which tells the compiler how addresses are aligned
    PROBES_FIRST   probes are the first axis of the product, outputs the second; else the other way round
    SPLIT          a part of the sum, to a workspace (kernels/split.py)
    """
    tile = tl.load(tiles + tl.program_id(0))
    site, panel = tile // n_panels, tile % n_panels
    o = panel * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    p = tl.program_id(1) * BLOCK_PROBES + tl.arange(0, BLOCK_PROBES)
    k = tl.arange(0, BLOCK_IN)
    p_live = p < probe_units * UNIT
    depth = (site % n_groups) * group_depth
    total = zeros(BLOCK_OUT, BLOCK_PROBES, PROBES_FIRST, out.dtype.element_ty)
    first, last = part_of(tl.load(chunk_begin + site), tl.load(chunk_begin + site + 1), SPLIT)
    for i in range(first, last):
        at = tl.load(chunk_at + i) * BLOCK_IN + k
        z = fetch(block, tl.load(rows + at), p, p_live, in_units * UNIT, PROBES_FIRST)
        if SCALES:
            z = scaled(z, tl.load(factor + at), PROBES_FIRST)
        w_row = (depth + tl.load(chunk_weight + i) + tl.load(channel + at)).to(tl.int64) * (n_panels * BLOCK_OUT)
        if PROBES_FIRST:
            total = multiply(z, tl.load(weight + w_row[:, None] + o[None, :]), total, MODE)
        else:
            total = multiply(tl.load(weight + w_row[None, :] + o[:, None]), z, total, MODE)
    if SCALES_MADE:
        total = scaled(total, tl.load(made_factor + site.to(tl.int64) * (n_panels * BLOCK_OUT) + o), PROBES_FIRST)
    if SPLIT:
        to = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    else:
        to = tl.load(outside + site.to(tl.int64) * (n_panels * BLOCK_OUT) + o)
    put(total, out, to, p, p_live, out_units * UNIT, ACCUMULATE, PROBES_FIRST)


def whole(counts: Tensor, depth: int) -> Tensor:
    """Lists of so many, filled up to whole chunks."""
    return -(-counts // depth) * depth


def depth_for(counts: Tensor) -> int:
    """Entries of a chunk for lists of so many: WIDE if that fills up few more."""
    wide, narrow = (int(whole(counts, depth).sum()) for depth in (WIDE, NARROW))
    return WIDE if wide <= FEW_MORE * narrow else NARROW


def under(counts: Tensor, neighbours: Tensor) -> Tensor:
    """(positions, groups) numbers of each neighbour, 0 for none: (sites, groups, taps)."""
    counts = torch.cat([counts, counts.new_zeros(1, counts.shape[1])])  # which -1 finds
    return counts[neighbours.long()].transpose(1, 2)


@dataclass(frozen=True)
class ByInputs:
    """Tables of this dataflow on the device; see `gather_gemm_kernel`.

    chunks    of a site and group, on average
    gathers   "sites" where the weights are a site's own, else "inputs"
    """

    tiles: dict[int, Tensor]
    chunk_begin: Tensor
    chunk_at: Tensor
    chunk_weight: Tensor
    rows: Tensor
    channel: Tensor
    weight: Tensor
    outside: Tensor
    groups: int
    group_depth: int
    depth: int
    chunks: int
    factor: Tensor | None = None
    made_factor: Tensor | None = None
    gathers: str = "inputs"

    @property
    def most(self) -> int:
        """Outputs that a site computes at most."""
        return self.weight.shape[1]

    def apart(self) -> ByInputs:
        return self

    def programs(self, size: int) -> int:
        return len(self.tiles[size])

    def rows_of(self, size: int) -> Tensor:
        """Rows of out of each program's outputs, -1 for none."""
        return self.outside.reshape(-1, size)[self.tiles[size].long()].flatten()

    def run(self, block: Tensor, out: Tensor, accumulate: bool, mode: str, tile: Tile, unit: int, parts: int) -> None:
        programs, k = self.tiles[tile.out], block.shape[1]
        gather_gemm_kernel[(len(programs), triton.cdiv(k, tile.probes), parts)](
            programs, self.chunk_begin, self.chunk_at, self.chunk_weight, self.rows, self.channel, self.weight,
            self.outside, self.factor, self.made_factor, block, out, self.weight.shape[1] // tile.out, self.groups,
            self.group_depth, k // unit, block.stride(0) // unit, out.stride(0) // unit,
            MODE=mode, ACCUMULATE=accumulate, SPLIT=parts > 1, PROBES_FIRST=tile.probes_first,
            SCALES=self.factor is not None, SCALES_MADE=self.made_factor is not None, UNIT=unit,
            BLOCK_OUT=tile.out, BLOCK_PROBES=tile.probes, BLOCK_IN=self.depth, num_warps=tile.warps,
            num_stages=tile.stages)


def by_inputs(inside: Tensor, live: Tensor, neighbours: Tensor, weight: Tensor, groups: int, depth: int,
              scale: Tensor | None = None, made_scale: Tensor | None = None) -> ByInputs:
    """Tables from `gathering`'s, on one device, with weights that sites share: `live` and `made_scale` are
    (sites · groups, outputs)."""
    device, (_, taps, inputs), outputs = inside.device, weight.shape, live.shape[1]
    to = live.new_full((len(live), filled(outputs)), -1)
    to[:, :outputs] = live
    lists = live_lists(inside.reshape(len(inside) * groups, inputs))
    rows, channel, begin = filled_up(lists, depth)
    factor = made_factor = None
    if scale is not None:
        factor, _, _ = filled_up(numbers_of(lists, scale.reshape(len(inside) * groups, inputs)), depth)
    if made_scale is not None:
        made_factor = made_scale.new_zeros(to.shape)
        made_factor[:, :outputs] = made_scale
    some = (to >= 0).any(1).reshape(-1, groups, 1)
    counts = (inside >= 0).reshape(-1, groups, inputs).sum(2)
    chunks = under(whole(counts, depth) // depth, neighbours) * some
    each = chunks.flatten()
    chunk_begin = torch.cat([each.new_zeros(1), chunks.sum(2).flatten().cumsum(0)])
    which, step = spread(each)  # of (site, group, tap)
    near = neighbours.long()[:, None, :] * groups + torch.arange(groups, device=device)[:, None]
    chunk_at = begin[near.flatten()[which]] // depth + step

    packed = weight.new_zeros(groups, taps * inputs, to.shape[1])
    packed[:, :, :outputs] = weight.reshape(groups, outputs, taps * inputs).transpose(1, 2)
    chunk = (chunk_begin, chunk_at, (which % taps) * inputs)
    return ByInputs(live_tiles(to), *(t.int() for t in (*chunk, rows, channel)), packed.flatten(0, 1).to(device), to,
                    groups, taps * inputs, depth, int(each.sum()) // max(1, int(some.sum())), factor, made_factor)


def spread(each: Tensor) -> tuple[Tensor, Tensor]:
    """Of so many things of each kind, in order: their kinds, and their places among their kind.

    >>> [found.tolist() for found in spread(torch.tensor([2, 0, 1]))]
    [[0, 0, 2], [0, 1, 0]]
    """
    kind = torch.arange(len(each), device=each.device).repeat_interleave(each)
    return kind, torch.arange(len(kind), device=each.device) - (each.cumsum(0) - each)[kind]


def live_tiles(to: Tensor) -> dict[int, Tensor]:
    """Outputs of a program -> which runs of so many have a live one in (any, width) rows, -1 for none."""
    return {size: live_places((to.reshape(len(to), to.shape[1] // size, size) >= 0).any(2))
            for size in PANELS if to.shape[1] % size == 0}
