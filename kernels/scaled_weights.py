"""Sums of a few weights on a GPU, each scaled row by row with a factor for every position: the scaled first layers of
a gated feed-forward block, out of which a dense product makes one matrix a position.

A program reads its tile of the weights once and writes it for POSITIONS positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from specxai.kernels.checks import check_tensor, unit_of
from specxai.kernels.precision import narrowed

MOST_WEIGHTS = 3
POSITIONS = 16  # of a program: the weights that it reads are a fifth of what it writes, or less
NUMBERS = 2048  # of a program's tile
DTYPES = (torch.bfloat16, torch.float32)


@triton.jit
def scaled_weights_kernel(
    first,
    second,
    third,
    factors,
    out,
    n_rows,
    column_units,
    n_positions,
    WEIGHTS: tl.constexpr,
    UNIT: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """A tile of the weights at POSITIONS positions; programs of one tile follow each other.

    column_units    the columns, in multiples of UNIT, which tells the compiler how addresses are aligned
    """
    n = column_units * UNIT
    chunks, panels = tl.cdiv(n_positions, POSITIONS), tl.cdiv(n, BLOCK_COLUMNS)
    tile, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    h = (tile // panels) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    j = ((tile % panels) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS))[None, :]
    live = (h < n_rows)[:, None] & (j < n)
    at = h.to(tl.int64)[:, None] * n + j
    W = tl.load(first + at, mask=live, other=0.0).to(tl.float32)
    if WEIGHTS >= 2:
        V = tl.load(second + at, mask=live, other=0.0).to(tl.float32)
    if WEIGHTS == 3:
        U = tl.load(third + at, mask=live, other=0.0).to(tl.float32)
    begin = chunk * POSITIONS
    for position in range(begin, tl.minimum(begin + POSITIONS, n_positions)):
        p = tl.cast(position, tl.int64)
        made = _factor(factors, p, h, n_rows) * W
        if WEIGHTS >= 2:
            made += _factor(factors, p + n_positions, h, n_rows) * V
        if WEIGHTS == 3:
            made += _factor(factors, p + 2 * n_positions, h, n_rows) * U
        tl.store(out + p * n_rows * n + at, narrowed(made, out.dtype.element_ty), mask=live)


@triton.jit
def _factor(factors, row, h, n_rows):
    return tl.load(factors + row * n_rows + h, mask=h < n_rows, other=0.0)[:, None]


def scaled_weights(weights: Sequence[Tensor], factors: Tensor, out: Tensor) -> None:
    """Write out[p, h, :] = Σ_i factors[i, p, h] · weights[i][h, :], in float32 and rounded once, on one CUDA device.

    Args:
        weights: one to three of (h, n), all bfloat16 or all float32, contiguous.
        factors: (len(weights), P, h) float32, contiguous.
        out: (P, h, n) bfloat16 or float32, contiguous, other memory.

    Raises:
        TypeError, ValueError: numbers, dtypes, devices or shapes that do not fit, with the values found.
    """
    _check(weights, factors, out)
    positions, h, n = out.shape
    if out.numel() == 0:
        return
    unit = unit_of(n)
    rows, columns = tile_for(n)
    tiles = triton.cdiv(h, rows) * triton.cdiv(n, columns)
    first, second, third = (*weights, *[None] * (MOST_WEIGHTS - len(weights)))
    with torch.cuda.device_of(out):
        scaled_weights_kernel[(tiles * triton.cdiv(positions, POSITIONS),)](
            first, second, third, factors, out, h, n // unit, positions, WEIGHTS=len(weights), UNIT=unit,
            POSITIONS=POSITIONS, BLOCK_ROWS=rows, BLOCK_COLUMNS=columns)


def tile_for(n: int) -> tuple[int, int]:
    """(rows, columns) of a program, for weights of n columns: a warp writes one row of bfloat16.

    >>> tile_for(4096), tile_for(40)
    ((8, 256), (32, 64))
    """
    columns = min(256, max(16, triton.next_power_of_2(n)))
    return NUMBERS // columns, columns


def _check(weights: Sequence[Tensor], factors: Tensor, out: Tensor) -> None:
    if not 1 <= len(weights) <= MOST_WEIGHTS:
        raise ValueError(f"there must be one to {MOST_WEIGHTS} weights, got {len(weights)}")
    for name, t, axes in (("weights[0]", weights[0], "(h, n)"), ("out", out, "(P, h, n)")):
        if t.dtype not in DTYPES:
            raise TypeError(f"{name} must be bfloat16 or float32, got {t.dtype}")
        if t.dim() != axes.count(",") + 1:
            raise ValueError(f"{name} must be {axes}, got {tuple(t.shape)}")
    shape, device = tuple(weights[0].shape), weights[0].device
    for i, weight in enumerate(weights):
        check_tensor(f"weights[{i}]", weight, weights[0].dtype, shape, device)
    check_tensor("factors", factors, torch.float32, (len(weights), len(out), shape[0]), device)
    check_tensor("out", out, out.dtype, (len(out), *shape), device)
