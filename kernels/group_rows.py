"""A diagonal plus a low rank in each group of a block of whole values on a GPU: a norm or a softmax, in one pass.

Blocks are [probe][group][unit], as cuBLAS reads and writes them.  A program owns a group under some probes, whose rows
it keeps in registers between the sums and what is made of them, and reads the group's tables once.  There are no
atomics, and every run has equal bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specxai.kernels.checks import check_tensor, unit_of
from specxai.kernels.precision import narrowed

MOST_RANK = 2
MOST_UNITS = 8192  # of a group whose rows are read once
MOST_PROBES = 64  # of a program
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@triton.jit
def group_rows_kernel(
    diagonal,
    left,
    right,
    block,
    onto,
    out,
    n_units,
    n_groups,
    n_probes,
    block_probe,
    block_group,
    onto_probe,
    onto_group,
    out_probe,
    out_group,
    RANK: tl.constexpr,
    HAS_ONTO: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_PROBES: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """A group under BLOCK_PROBES probes; WHOLE: its units fit in one tile.  Programs of a group follow each other.

    n_units, *_probe, *_group    a row's length and the blocks' strides, in multiples of UNIT, which tells the compiler
                                 how addresses are aligned
    """
    n = n_units * UNIT
    chunks = tl.cdiv(n_probes, BLOCK_PROBES)
    g = (tl.program_id(0) // chunks).to(tl.int64)
    p = ((tl.program_id(0) % chunks) * BLOCK_PROBES + tl.arange(0, BLOCK_PROBES))[:, None]
    p_live = p < n_probes
    p = p.to(tl.int64)
    block += g * (block_group * UNIT) + p * (block_probe * UNIT)
    out += g * (out_group * UNIT) + p * (out_probe * UNIT)
    if HAS_ONTO:
        onto += g * (onto_group * UNIT) + p * (onto_probe * UNIT)
    real: tl.constexpr = diagonal.dtype.element_ty
    diagonal += g * n
    if RANK == 0:  # none is read; Triton 3.6 passes on no None
        left, next_left, right, next_right = diagonal, diagonal, diagonal, diagonal
    else:
        left, next_left = _tables(left, g, n_groups, n, RANK)
        right, next_right = _tables(right, g, n_groups, n, RANK)
    first = tl.zeros((BLOCK_PROBES, 1), dtype=real)
    second = tl.zeros((BLOCK_PROBES, 1), dtype=real)
    if WHOLE:
        j = tl.arange(0, BLOCK_UNITS)[None, :]
        z = _load(block, j, n, p_live).to(real)
        if RANK >= 1:
            first = _sum(right, j, n, z)
        if RANK == 2:
            second = _sum(next_right, j, n, z)
        _put(z, first, second, diagonal, left, next_left, onto, out, j, n, p_live, RANK, HAS_ONTO)
    else:
        if RANK >= 1:
            for start in range(0, n, BLOCK_UNITS):
                j = (start + tl.arange(0, BLOCK_UNITS))[None, :]
                z = _load(block, j, n, p_live).to(real)
                first += _sum(right, j, n, z)
                if RANK == 2:
                    second += _sum(next_right, j, n, z)
        for start in range(0, n, BLOCK_UNITS):
            j = (start + tl.arange(0, BLOCK_UNITS))[None, :]
            z = _load(block, j, n, p_live).to(real)
            _put(z, first, second, diagonal, left, next_left, onto, out, j, n, p_live, RANK, HAS_ONTO)


@triton.jit
def _tables(tables, g, n_groups, n, RANK: tl.constexpr):
    """Group g of both of (RANK, n_groups, n) tables; the same twice where there is one."""
    if RANK == 1:
        return tables + g * n, tables + g * n
    else:
        return tables + g * n, tables + (n_groups + g) * n


@triton.jit
def _load(rows, j, n, p_live):
    return tl.load(rows + j, mask=p_live & (j < n), other=0.0)


@triton.jit
def _row(table, j, n):
    return tl.load(table + j, mask=j < n, other=0.0)


@triton.jit
def _sum(table, j, n, z):
    """Σ_j table[j] · z[:, j], a column."""
    return tl.sum(_row(table, j, n) * z, axis=1, keep_dims=True)


@triton.jit
def _put(z, first, second, diagonal, left, next_left, onto, out, j, n, p_live, RANK: tl.constexpr,
         HAS_ONTO: tl.constexpr):
    """Store units j of a group's rows, made of z = block[:, j] and the sums."""
    made = _row(diagonal, j, n) * z
    if RANK >= 1:
        made += _row(left, j, n) * first
    if RANK == 2:
        made += _row(next_left, j, n) * second
    if HAS_ONTO:
        made += _load(onto, j, n, p_live).to(made.dtype)
    tl.store(out + j, narrowed(made, out.dtype.element_ty), mask=p_live & (j < n))


def group_rows(block: Tensor, diagonal: Tensor, left: Tensor | None, right: Tensor | None, out: Tensor,
               onto: Tensor | None = None) -> None:
    """Write out[p, g, i] = diagonal[g, i] · block[p, g, i] + Σ_r left[r, g, i] Σ_j right[r, g, j] · block[p, g, j],
    and `onto` is added to it; all on one CUDA device.

    Sums are in the tables' dtype, and what is made is rounded once.

    Args:
        block: (k, groups, n) bfloat16, float16, float32 or float64, units contiguous.
        diagonal: (groups, n) float32, float64 for a float64 block; left, right: (rank, groups, n) likewise, rank 1 or
            2, or both None: the diagonal alone.
        out: (k, groups, n), units contiguous, bfloat16, float32 or the block's dtype; float64 for a float64 block.
            It may be `block` or `onto` itself; else it is other memory.
        onto: (k, groups, n), of a dtype that `out` may have.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not fit, with the values found.
    """
    rank = _check(block, diagonal, left, right, out, onto)
    k, groups, n = block.shape
    if block.numel() == 0:
        return
    blocks = (block, out if onto is None else onto, out)
    strides = [stride for t in blocks for stride in t.stride()[:2]]
    unit = unit_of(n, *strides)
    probes, units, warps = tile_for(n, block.dtype)
    with torch.cuda.device_of(block):
        group_rows_kernel[(groups * triton.cdiv(k, probes),)](
            diagonal, left, right, block, onto, out, n // unit, groups, k, *(stride // unit for stride in strides),
            RANK=rank, HAS_ONTO=onto is not None, UNIT=unit, BLOCK_PROBES=probes, BLOCK_UNITS=units,
            WHOLE=units >= n, num_warps=warps)


def tile_for(n: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """(probes, units, warps) of a program: no spills (tests/native/test_triton.py), not measured on a card yet.

    >>> tile_for(768, torch.bfloat16), tile_for(8192, torch.bfloat16), tile_for(9000, torch.bfloat16)
    ((8, 1024, 8), (2, 8192, 16), (8, 1024, 8))
    """
    double = dtype is torch.float64
    units = max(16, triton.next_power_of_2(n))
    if units > (MOST_UNITS // 2 if double else MOST_UNITS):
        units = 1024
    warps = 4 if units <= 512 else 8 if units <= 4096 else 16
    numbers = {4: 2048, 8: 8192, 16: 16384}[warps] // (2 if double else 1)
    return min(MOST_PROBES, numbers // units), units, warps


def _check(block: Tensor, diagonal: Tensor, left: Tensor | None, right: Tensor | None, out: Tensor,
           onto: Tensor | None) -> int:
    """The rank."""
    if block.dtype not in DTYPES:
        raise TypeError(f"block must be bfloat16, float16, float32 or float64, got {block.dtype}")
    if block.dim() != 3:
        raise ValueError(f"block must be (probes, groups, units), got {tuple(block.shape)}")
    double = block.dtype is torch.float64
    allowed = (torch.float64,) if double else tuple(dict.fromkeys((torch.bfloat16, torch.float32, block.dtype)))
    for name, t in (("block", block), ("out", out), ("onto", onto)):
        if t is None:
            continue
        if t.dtype not in allowed:
            raise TypeError(f"{name} is {t.dtype}; with a block of {block.dtype} it may be "
                            f"{' or '.join(map(str, allowed))}")
        if t.shape != block.shape:
            raise ValueError(f"{name} must be {tuple(block.shape)} as the block, got {tuple(t.shape)}")
        if t.device != block.device:
            raise ValueError(f"{name} is on {t.device}, expected {block.device}")
        if t.shape[2] > 1 and t.stride(2) != 1:
            raise ValueError(f"units must be contiguous, got strides {t.stride()} of {name}")
    if (left is None) != (right is None):
        raise ValueError(f"left and right come together, got only {'right' if left is None else 'left'}")
    real, (_, groups, n) = torch.float64 if double else torch.float32, block.shape
    check_tensor("diagonal", diagonal, real, (groups, n), block.device)
    if left is None or right is None:
        return 0
    rank = len(left) if left.dim() == 3 else 0
    if not 1 <= rank <= MOST_RANK:
        raise ValueError(f"left must be (rank, groups, n) of rank 1 to {MOST_RANK}, got {tuple(left.shape)}")
    for name, t in (("left", left), ("right", right)):
        check_tensor(name, t, real, (rank, groups, n), block.device)
    return rank
