"""Depthwise convolution on a GPU: sums of rows with a weight for each channel and tap.

    out[outside[s, c], :] (+)= Σ_t weight[t, c] · in[inside[neighbours[s, t], c], :]

There is nothing to multiply in tiles, and what bounds it is how many rows are read.  Blocks are [row][probe]; the
tables stay those of the plan, a few numbers a position, where a list of entries would be as many as rows are read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from specxai.kernels.checks import check_blocks, check_table, reach, require_distinct, unit_of
from specxai.kernels.lists import live_places
from specxai.kernels.tile import sums_for


@triton.jit
def depthwise_kernel(
    at,
    inside,
    outside,
    neighbours,
    weight,
    block,
    out,
    n_live,
    n_channels,
    n_taps,
    probe_units,
    in_units,
    out_units,
    ACCUMULATE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PROBES: tl.constexpr,
):
    """A tile of BLOCK_ROWS live outputs and BLOCK_PROBES probes.

    at         (n_live,) live outputs, as site · n_channels + channel
    weight     (n_taps, n_channels)
    *_units    in multiples of UNIT, which tells the compiler how addresses are aligned
    """
    r = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    p = tl.program_id(1) * BLOCK_PROBES + tl.arange(0, BLOCK_PROBES)
    p_live = p < probe_units * UNIT
    r_live = r < n_live
    output = tl.load(at + r, mask=r_live, other=0)
    site, c = output // n_channels, output % n_channels
    total = tl.zeros((BLOCK_ROWS, BLOCK_PROBES), dtype=out.dtype.element_ty)
    for t in range(n_taps):
        q = tl.load(neighbours + site * n_taps + t)
        row = tl.load(inside + q * n_channels + c, mask=q >= 0, other=-1)
        live = (row >= 0)[:, None] & p_live[None, :]
        z = tl.load(block + row.to(tl.int64)[:, None] * (in_units * UNIT) + p[None, :], mask=live, other=0.0)
        total += tl.load(weight + t * n_channels + c)[:, None] * z
    place = out + tl.load(outside + output).to(tl.int64)[:, None] * (out_units * UNIT) + p[None, :]
    live = r_live[:, None] & p_live[None, :]
    if ACCUMULATE:
        total += tl.load(place, mask=live, other=0.0)
    tl.store(place, total, mask=live)


@dataclass(frozen=True)
class Depthwise:
    """One direction's tables on the device; see `depthwise_kernel`.

    read, written   rows of block and of out that there must be
    entries         multiply-adds of one probe, of live outputs with live inputs
    """

    at: Tensor
    inside: Tensor
    outside: Tensor
    neighbours: Tensor
    weight: Tensor
    read: int
    written: int
    entries: int


def depthwise_tables(inside: Tensor, outside: Tensor, neighbours: Tensor, weight: Tensor,
                     device: torch.device | str) -> Depthwise:
    """Tables of a depthwise convolution on `device`.

    Args:
        inside: (positions, channels) int32 rows of the block that is read, -1 for a dead unit.
        outside: (sites, channels) int32 rows that are written, no two the same, -1 for a dead unit.
        neighbours: (sites, taps) int32 positions, -1 for none.
        weight: (channels, taps) float32 or float64.

    Raises:
        TypeError, ValueError: dtypes or shapes that do not fit, with the values found.
    """
    if weight.dim() != 2 or weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"weight must be (channels, taps) in float32 or float64, got {tuple(weight.shape)} of "
                        f"{weight.dtype}")
    channels, taps = weight.shape
    for name, t, columns in (("inside", inside, channels), ("outside", outside, channels),
                             ("neighbours", neighbours, taps)):
        check_table(name, t, columns)
    inside, outside, neighbours = (t.to(device) for t in (inside, outside, neighbours))
    if len(neighbours) != len(outside) or reach(neighbours) > len(inside):
        raise ValueError(f"neighbours is {tuple(neighbours.shape)} and names {reach(neighbours)} positions; there are "
                         f"{len(outside)} sites and {len(inside)} positions")
    require_distinct("outside", outside)
    live = outside >= 0
    there = torch.cat([inside >= 0, live.new_zeros(1, channels)])  # which -1 finds
    entries = sum(int((there[under.long()] & live).sum()) for under in neighbours.unbind(1))
    tables = (live_places(live), inside, outside, neighbours, weight.T)
    return Depthwise(*(t.contiguous().to(device) for t in tables), reach(inside), reach(outside), entries)


def depthwise(tables: Depthwise, block: Tensor, out: Tensor, accumulate: bool = False) -> None:
    """Write (or add to) the tables' rows of `out` from their rows of `block`, in the dtype of the weights.

    Args:
        block: (rows, k), probes contiguous; out: likewise, other rows or other memory.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not fit, with the values found.
    """
    check_blocks(block, out, tables.weight.dtype, tables.weight.device, tables.read, tables.written)
    n, k = len(tables.at), block.shape[1]
    if n == 0 or k == 0:
        return
    rows, probes = sums_for(k)
    unit = unit_of(k, block.stride(0), out.stride(0))
    taps, channels = tables.weight.shape
    with torch.cuda.device_of(block):
        depthwise_kernel[(triton.cdiv(n, rows), triton.cdiv(k, probes))](
            tables.at, tables.inside, tables.outside, tables.neighbours, tables.weight, block, out,
            n, channels, taps, k // unit, block.stride(0) // unit, out.stride(0) // unit,
            ACCUMULATE=accumulate, UNIT=unit, BLOCK_ROWS=rows, BLOCK_PROBES=probes)
