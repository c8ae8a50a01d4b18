"""Numbers taken from another value, times what: rotations, halves, heads, of whole values [probe][unit], in Triton.

A program makes some units of some probes, reads how those are made once, and adds in order: no atomics, and equal bits
on every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specxai.kernels.checks import check_tensor
from specxai.kernels.precision import narrowed

UNITS, PROBES = 256, 8  # of a tile
WARPS = 8  # with four, sums of eight numbers take all registers, and spill
INDICES = (1 << 31) - 1  # of the table
MOST = 8  # numbers that a unit is the sum of


@triton.jit
def route_kernel(
    at,
    scale,
    block,
    out,
    n_units,
    n_probes,
    stride_in,
    stride_out,
    ENTRIES: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    BLOCK_PROBES: tl.constexpr,
):
    """out[p, u] = Σ_e scale[e, u] · block[p, at[e, u]]."""
    chunks = tl.cdiv(n_probes, BLOCK_PROBES)  # one axis for all: a launch's others end at 65,535
    u = (tl.program_id(0) // chunks) * BLOCK_UNITS + tl.arange(0, BLOCK_UNITS)
    p = ((tl.program_id(0) % chunks) * BLOCK_PROBES + tl.arange(0, BLOCK_PROBES)).to(tl.int64)
    u_live = u < n_units
    live = (p < n_probes)[:, None] & u_live[None, :]
    total = tl.zeros((BLOCK_PROBES, BLOCK_UNITS), dtype=scale.dtype.element_ty)
    for e in tl.static_range(ENTRIES):
        unit = tl.load(at + e * n_units + u, mask=u_live, other=0)
        z = tl.load(block + p[:, None] * stride_in + unit[None, :], mask=live, other=0.0)
        total += tl.load(scale + e * n_units + u, mask=u_live, other=0.0)[None, :] * z.to(total.dtype)
    tl.store(out + p[:, None] * stride_out + u[None, :], narrowed(total, out.dtype.element_ty), mask=live)


def route(at: Tensor, scale: Tensor, block: Tensor, out: Tensor) -> None:
    """Write every unit of `out` from units of `block`, all on one CUDA device.

    Indices are not checked: that would wait for the device.

    Args:
        at: (entries, n) int32, 1 to 8 entries: units of `block`.
        scale: (entries, n) float32 or float64; 0 for an entry that is none.
        block: (k, m) of 16, 32 or 64 bits, units contiguous; out: (k, n) likewise, other memory.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not fit, with the values found.
    """
    _check(at, scale, block, out)
    (entries, n), k = at.shape, len(block)
    if n == 0 or k == 0:
        return
    with torch.cuda.device_of(block):
        route_kernel[(triton.cdiv(k, PROBES) * triton.cdiv(n, UNITS),)](
            at, scale, block, out, n, k, block.stride(0), out.stride(0), ENTRIES=entries, BLOCK_UNITS=UNITS,
            BLOCK_PROBES=PROBES, num_warps=WARPS)


def _check(at: Tensor, scale: Tensor, block: Tensor, out: Tensor) -> None:
    if at.dim() != 2 or not 1 <= len(at) <= MOST:
        raise ValueError(f"at must be (entries, units) of 1 to {MOST} entries, got {tuple(at.shape)}")
    if scale.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"scale must be float32 or float64, got {scale.dtype}")
    check_tensor("at", at, torch.int32, tuple(at.shape), block.device)
    check_tensor("scale", scale, scale.dtype, tuple(at.shape), block.device)
    if at.numel() > INDICES:
        raise ValueError(f"at has {at.numel():,} entries, more than 32-bit indices reach")
    for name, t in (("block", block), ("out", out)):
        if t.dim() != 2 or not t.is_floating_point():
            raise TypeError(f"{name} must be (probes, units) of floating-point numbers, got {tuple(t.shape)} of "
                            f"{t.dtype}")
        if t.shape[1] > 1 and t.stride(1) != 1:
            raise ValueError(f"units must be contiguous, got strides {t.stride()} of {name}")
    if out.shape != (len(block), at.shape[1]) or out.device != block.device:
        raise ValueError(f"out must be {(len(block), at.shape[1])} on {block.device}, got {tuple(out.shape)} on "
                         f"{out.device}")
