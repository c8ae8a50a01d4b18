"""Tiles of blocks [row][probe] in the order that a product wants them: loaded and stored as that, so that rows are
copied sixteen bytes at a time (a transposition afterwards would make it four)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fetch(block, row, p, p_live, pitch, PROBES_FIRST: tl.constexpr):
    """Rows `row` of the block, zero for -1: (probes, rows) if PROBES_FIRST, else (rows, probes)."""
    at = row.to(tl.int64) * pitch
    if PROBES_FIRST:
        return tl.load(block + at[None, :] + p[:, None], mask=(row >= 0)[None, :] & p_live[:, None], other=0.0)
    else:
        return tl.load(block + at[:, None] + p[None, :], mask=(row >= 0)[:, None] & p_live[None, :], other=0.0)


@triton.jit
def put(total, out, row, p, p_live, pitch, ACCUMULATE: tl.constexpr, PROBES_FIRST: tl.constexpr):
    """Store, or add, a tile to rows `row` of out, -1 for none."""
    at = row.to(tl.int64) * pitch
    if PROBES_FIRST:
        place, live = out + at[None, :] + p[:, None], (row >= 0)[None, :] & p_live[:, None]
    else:
        place, live = out + at[:, None] + p[None, :], (row >= 0)[:, None] & p_live[None, :]
    if ACCUMULATE:
        total += tl.load(place, mask=live, other=0.0)
    tl.store(place, total, mask=live)


@triton.jit
def scaled(tile, factor, PROBES_FIRST: tl.constexpr):
    """The tile with each of its rows times a factor."""
    if PROBES_FIRST:
        return tile * factor[None, :]
    else:
        return tile * factor[:, None]


@triton.jit
def zeros(BLOCK_OUT: tl.constexpr, BLOCK_PROBES: tl.constexpr, PROBES_FIRST: tl.constexpr, dtype: tl.constexpr):
    if PROBES_FIRST:
        return tl.zeros((BLOCK_PROBES, BLOCK_OUT), dtype=dtype)
    else:
        return tl.zeros((BLOCK_OUT, BLOCK_PROBES), dtype=dtype)
