"""A diagonal plus a low rank in groups of rows on a GPU: the meaning of csrc/cpu/low_rank.h, in Triton.

Blocks are [unit][probe].  A program owns a group under some probes: it sums the group's rows in their order, then
writes them, so that there are no atomics and every run has equal bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specxai.kernels.blocks import fetch, put
from specxai.kernels.checks import check_blocks, check_tensor

MOST_RANK = 2


@triton.jit
def low_rank_kernel(
    inside,
    outside,
    diagonal,
    left,
    right,
    block,
    out,
    size,
    n_probes,
    stride_in,
    stride_out,
    RANK: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    BLOCK_PROBES: tl.constexpr,
):
    """out[outside[g, i]] (+)= diagonal[g, i] · block[inside[g, i]] + Σ_r left[g, r, i] Σ_j right[g, r, j] ·
    block[inside[g, j]] of one group g.
    """
    g = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BLOCK_PROBES + tl.arange(0, BLOCK_PROBES)
    p_live = p < n_probes
    first = tl.zeros((BLOCK_PROBES,), dtype=out.dtype.element_ty)
    second = tl.zeros((BLOCK_PROBES,), dtype=out.dtype.element_ty)
    for start in range(0, size, BLOCK_UNITS):
        i = start + tl.arange(0, BLOCK_UNITS)
        live = i < size
        row = tl.load(inside + g * size + i, mask=live, other=-1)
        z = fetch(block, row, p, p_live, stride_in, False)
        first += tl.sum(tl.load(right + g * RANK * size + i, mask=live, other=0.0)[:, None] * z, axis=0)
        if RANK == 2:
            second += tl.sum(tl.load(right + (g * RANK + 1) * size + i, mask=live, other=0.0)[:, None] * z, axis=0)
    for start in range(0, size, BLOCK_UNITS):
        i = start + tl.arange(0, BLOCK_UNITS)
        live = i < size
        row = tl.load(inside + g * size + i, mask=live, other=-1)
        z = fetch(block, row, p, p_live, stride_in, False)
        made = tl.load(diagonal + g * size + i, mask=live, other=0.0)[:, None] * z
        made += tl.load(left + g * RANK * size + i, mask=live, other=0.0)[:, None] * first[None, :]
        if RANK == 2:
            made += tl.load(left + (g * RANK + 1) * size + i, mask=live, other=0.0)[:, None] * second[None, :]
        to = tl.load(outside + g * size + i, mask=live, other=-1)
        put(made, out, to, p, p_live, stride_out, ACCUMULATE, False)


def low_rank(inside: Tensor, outside: Tensor, diagonal: Tensor, left: Tensor, right: Tensor, block: Tensor, out: Tensor,
             accumulate: bool = False) -> None:
    """Write (or add to) the rows `outside` of `out` from the rows `inside` of `block`, all on one CUDA device.

    Indices are not checked: that would wait for the device.

    Args:
        inside, outside: (groups, n) int32 rows, -1 for a unit that is zero or not wanted; no two of `outside` the same.
        diagonal: (groups, n); left, right: (groups, rank, n), rank 1 or 2, of the blocks' dtype.
        block: (rows, k) float32 or float64, probes contiguous; out: (rows, k) likewise, which may be the same memory
            where no row is both read and written.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not fit, with the values found.
    """
    _check(inside, outside, diagonal, left, right, block, out)
    (groups, size), k = inside.shape, block.shape[1]
    if groups == 0 or size == 0 or k == 0:
        return
    units, probes = tiles_for(size, k)
    with torch.cuda.device_of(block):
        low_rank_kernel[(groups, triton.cdiv(k, probes))](
            inside, outside, diagonal, left, right, block, out, size, k, block.stride(0), out.stride(0),
            RANK=left.shape[1], ACCUMULATE=accumulate, BLOCK_UNITS=units, BLOCK_PROBES=probes)


def tiles_for(size: int, probes: int) -> tuple[int, int]:
    """(units, probes) of a tile: sixteen bytes of a row a thread, and no more units than a group has."""
    wide = min(64, max(16, triton.next_power_of_2(probes)))
    return min(2048 // wide, max(8, triton.next_power_of_2(size))), wide


def _check(inside: Tensor, outside: Tensor, diagonal: Tensor, left: Tensor, right: Tensor, block: Tensor,
           out: Tensor) -> None:
    if block.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"block must be float32 or float64, got {block.dtype}")
    check_blocks(block, out, block.dtype, inside.device, 0, 0)
    if inside.dim() != 2:
        raise ValueError(f"inside must be (groups, n), got {tuple(inside.shape)}")
    rank = left.shape[1] if left.dim() == 3 else 0
    if not 1 <= rank <= MOST_RANK:
        raise ValueError(f"left must be (groups, rank, n) of rank 1 to {MOST_RANK}, got {tuple(left.shape)}")
    groups, size = inside.shape
    for name, t, dtype, shape in (
            ("inside", inside, torch.int32, (groups, size)), ("outside", outside, torch.int32, (groups, size)),
            ("diagonal", diagonal, block.dtype, (groups, size)), ("left", left, block.dtype, (groups, rank, size)),
            ("right", right, block.dtype, (groups, rank, size))):
        check_tensor(name, t, dtype, shape, block.device)
