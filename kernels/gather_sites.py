"""Gather-GEMM's third way: weights packed per site, live inputs by live outputs.

No dead unit is read or computed.  But each site has a copy of its weights, which a pass reads from memory, where
shared weights stay in a cache: it pays where few units live on both sides, and where sites are few.  The kernel is that
of gathered inputs: a site's list is over all taps, and its live outputs are compacted into panels, each with weights of
its own, (entries of the list, panel).
"""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.kernels.gather_inputs import FEW_MORE, ByInputs, depth_for, live_tiles, spread, whole
from specxai.kernels.lists import filled_up, live_lists, tap_numbers, tap_rows
from specxai.kernels.tile import PANELS

# Of a stage's packed weights in one direction: bytes, and copies of its own weights, which in early layers are few and
# near, and have thousands of sites.
MOST_BYTES, MOST_COPIES = 1 << 28, 64
MOST_ENTRIES = 1 << 26  # of all sites' inputs, dead ones too, which are written out to be packed
SLAB = 1 << 22  # weights that are packed at once: 32 MB of places


def panel_for(outputs: Tensor) -> int:
    """Outputs of a panel, for sites with so many live ones: the most that fill up few more.

    >>> panel_for(torch.tensor([60, 128])), panel_for(torch.tensor([17, 30]))
    (64, 32)
    """
    least = int(whole(outputs, PANELS[0]).sum())
    return next(size for size in reversed(PANELS) if int(whole(outputs, size).sum()) <= FEW_MORE * least)


def packed_numbers(inputs: Tensor, outputs: Tensor) -> int:
    """Weights of sites with so many live inputs and outputs, filled up to chunks and panels."""
    inputs = inputs * (outputs > 0)
    return int((whole(inputs, depth_for(inputs)) * whole(outputs, panel_for(outputs))).sum())


def may_pack(packed: int, weights: int, dtype: torch.dtype) -> bool:
    """Whether so many packed weights are within what packing may take, of a stage with so many of its own."""
    return packed * dtype.itemsize <= MOST_BYTES and packed <= MOST_COPIES * weights


def packed_sites(inside: Tensor, live: Tensor, neighbours: Tensor, weight: Tensor, groups: int,
                 scale: Tensor | None = None, made_scale: Tensor | None = None) -> ByInputs:
    """Tables from `gathering`'s, on one device: `live` and `made_scale` are (sites · groups, outputs).  Factors become
    part of the weights."""
    outputs = (live >= 0).sum(1)
    own = tap_rows(inside, neighbours, groups).reshape(len(live), -1).masked_fill(outputs[:, None] == 0, -1)
    lists = live_lists(own)
    counts = lists.begin.diff().long()
    depth, width = depth_for(counts), panel_for(outputs)
    rows, column, begin = filled_up(lists, depth)
    to, made, _ = filled_up(live_lists(live), width)
    to, made = to.reshape(-1, width), made.reshape(-1, width)
    line, _ = spread(whole(outputs, width) // width)  # site and group of each panel

    each = whole(counts, depth)[line] // depth  # chunks of a panel
    panel, step = spread(each)
    chunk_at = begin[line[panel]] // depth + step
    packed = weight.new_zeros(len(panel) * depth, width, device=live.device)
    by_input = weight.to(live.device).flatten(1).T.contiguous()  # (taps · inputs, groups · outputs)
    if scale is not None:
        scale = tap_numbers(scale, neighbours, groups).reshape(len(live), -1)
    channels = weight.shape[0] // groups
    chunks_at_once = max(1, SLAB // (depth * width))
    for first in range(0, len(panel), chunks_at_once):
        some = slice(first, first + chunks_at_once)
        at, of = chunk_at[some, None] * depth + torch.arange(depth, device=live.device), line[panel[some]]
        group = of % groups * channels
        numbers = by_input[column[at].long()[:, :, None], (group[:, None] + made[panel[some]])[:, None, :]]
        numbers.masked_fill_((rows[at] < 0)[:, :, None] | (to[panel[some]] < 0)[:, None, :], 0)
        if scale is not None:
            numbers *= scale[of[:, None], column[at].long()][:, :, None]
        if made_scale is not None:
            numbers *= made_scale[of[:, None], made[panel[some]].long()][:, None, :]
        packed[first * depth:(first + len(of)) * depth] = numbers.flatten(0, 1)
    place = torch.arange(len(rows), device=live.device) % depth  # in its chunk
    chunk_begin = torch.cat([each.new_zeros(1), each.cumsum(0)])
    chunk_weight = torch.arange(len(panel), device=live.device) * depth
    tables = (t.int() for t in (chunk_begin, chunk_at, chunk_weight, rows, place))
    return ByInputs(live_tiles(to), *tables, packed, to, 1, 0, depth,
                    int(each.sum()) // max(1, len(each)), gathers="sites")
