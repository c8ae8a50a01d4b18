"""Sparse sums of rows on a GPU: the meaning of csrc/cpu/row_sum.h, in Triton.

Entries lie together by the row that they are summed in, as in a CSR matrix; blocks are [unit][probe].  A program owns
its output rows and adds their entries in order: no atomics, and equal bits on every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specxai.kernels.checks import check_blocks
from specxai.kernels.tile import sums_for


@triton.jit
def row_sum_kernel(
    begin,
    to,
    source,
    scale,
    block,
    out,
    n_rows,
    n_probes,
    stride_in,
    stride_out,
    HAS_SCALE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PROBES: tl.constexpr,
):
    """out[to[r]] (+)= Σ scale[e] · block[source[e]] over the entries e in [begin[r], begin[r + 1]).

    One program computes a (BLOCK_ROWS, BLOCK_PROBES) tile; it runs as long as its longest row.
    """
    r = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    p = tl.program_id(1) * BLOCK_PROBES + tl.arange(0, BLOCK_PROBES)
    r_live = r < n_rows
    p_live = p < n_probes
    first = tl.load(begin + r, mask=r_live, other=0)
    count = tl.load(begin + r + 1, mask=r_live, other=0) - first

    total = tl.zeros((BLOCK_ROWS, BLOCK_PROBES), dtype=out.dtype.element_ty)
    for k in range(0, tl.max(count, axis=0)):
        e_live = k < count
        row = tl.load(source + first + k, mask=e_live, other=0).to(tl.int64)
        live = e_live[:, None] & p_live[None, :]
        z = tl.load(block + row[:, None] * stride_in + p[None, :], mask=live, other=0.0)
        if HAS_SCALE:
            total += tl.load(scale + first + k, mask=e_live, other=0.0)[:, None] * z
        else:
            total += z
    at = out + tl.load(to + r, mask=r_live, other=0).to(tl.int64)[:, None] * stride_out + p[None, :]
    live = r_live[:, None] & p_live[None, :]
    if ACCUMULATE:
        total += tl.load(at, mask=live, other=0.0)
    tl.store(at, total, mask=live)


def row_sum(begin: Tensor, to: Tensor, source: Tensor, scale: Tensor | None, block: Tensor, out: Tensor,
            accumulate: bool = False) -> None:
    """Write (or add to) the rows `to` of `out` their sums of rows of `block`, all on one CUDA device.

    Indices are not checked: that would wait for the device.  A row without entries becomes zero where it is in `to`.

    Args:
        begin: (n + 1,) int32, the entries before each of the n sums, and in all.
        to: (n,) int32 rows of `out`, no two the same.
        source: (entries,) int32 rows of `block`.
        scale: (entries,) factors of the blocks' dtype; ones if None.
        block: (rows, k) float32 or float64, probes contiguous; out: (rows, k) likewise, other memory.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not fit, with the values found.
    """
    _check(begin, to, source, scale, block, out)
    n, k = len(to), block.shape[1]
    if n == 0 or k == 0:
        return
    rows, probes = sums_for(k)
    with torch.cuda.device_of(block):
        row_sum_kernel[(triton.cdiv(n, rows), triton.cdiv(k, probes))](
            begin, to, source, scale, block, out, n, k, block.stride(0), out.stride(0), HAS_SCALE=scale is not None,
            ACCUMULATE=accumulate, BLOCK_ROWS=rows, BLOCK_PROBES=probes)


def _check(begin: Tensor, to: Tensor, source: Tensor, scale: Tensor | None, block: Tensor, out: Tensor) -> None:
    if block.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"block must be float32 or float64, got {block.dtype}")
    check_blocks(block, out, block.dtype, to.device, 0, 0)
    if len(begin) != len(to) + 1:
        raise ValueError(f"begin holds {len(begin)} numbers, which must be one more than the {len(to)} rows of to")
    if scale is not None and len(scale) != len(source):
        raise ValueError(f"scale holds {len(scale)} factors, but there are {len(source)} entries")
    for name, t, dtype in (("begin", begin, torch.int32), ("to", to, torch.int32), ("source", source, torch.int32),
                           ("scale", scale, block.dtype)):
        if t is None:
            continue
        if t.dtype is not dtype:
            raise TypeError(f"{name} is {t.dtype}, expected {dtype}")
        if t.device != block.device:
            raise ValueError(f"{name} is on {t.device} but block is on {block.device}")
        if not t.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {t.stride()}")
