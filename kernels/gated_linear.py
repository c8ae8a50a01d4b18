"""One dense linear stage of a gated chain on a GPU: the meaning of csrc/cpu/gated_linear.h, in Triton.

W' = diag(scale) W[rows, cols]; the map is W' Z and the adjoint W'ᵀ Z, on a block of probes in [unit][probe] layout.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_OUT, BLOCK_PROBES, BLOCK_IN = 64, 64, 32


@triton.jit
def gated_linear_kernel(
    weight,
    rows,
    cols,
    scale,
    block,
    out,
    n_out,
    n_in,
    n_probes,
    stride_out,
    stride_in,
    TRANSPOSE: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_COLS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_PROBES: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """out (n_out, n_probes) = gated weights (n_out, n_in) @ block (n_in, n_probes).

    One program computes a (BLOCK_OUT, BLOCK_PROBES) tile.  `stride_out` and `stride_in` are the strides of W along
    its units on the output's and the input's side; `rows` and `scale` go with the output, or with the input if
    TRANSPOSE.
    """
    o = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    p = tl.program_id(1) * BLOCK_PROBES + tl.arange(0, BLOCK_PROBES)
    o_live = o < n_out
    p_live = p < n_probes
    if TRANSPOSE:
        unit_out = tl.load(cols + o, mask=o_live, other=0) if HAS_COLS else o.to(tl.int64)
    else:
        unit_out = tl.load(rows + o, mask=o_live, other=0) if HAS_ROWS else o.to(tl.int64)
    w_out = weight + unit_out * stride_out

    total = tl.zeros((BLOCK_OUT, BLOCK_PROBES), dtype=out.dtype.element_ty)
    for start in range(0, n_in, BLOCK_IN):
        i = start + tl.arange(0, BLOCK_IN)
        i_live = i < n_in
        if TRANSPOSE:
            unit_in = tl.load(rows + i, mask=i_live, other=0) if HAS_ROWS else i.to(tl.int64)
        else:
            unit_in = tl.load(cols + i, mask=i_live, other=0) if HAS_COLS else i.to(tl.int64)
        w = tl.load(
            w_out[:, None] + (unit_in * stride_in)[None, :],
            mask=o_live[:, None] & i_live[None, :],
            other=0.0,
        )
        z = tl.load(
            block + i.to(tl.int64)[:, None] * n_probes + p[None, :],
            mask=i_live[:, None] & p_live[None, :],
            other=0.0,
        )
        if HAS_SCALE and TRANSPOSE:
            w *= tl.load(scale + i, mask=i_live, other=0.0)[None, :]
        total += tl.dot(w, z, input_precision=PRECISION, out_dtype=out.dtype.element_ty)
    if HAS_SCALE and not TRANSPOSE:
        total *= tl.load(scale + o, mask=o_live, other=0.0)[:, None]
    tl.store(out + o.to(tl.int64)[:, None] * n_probes + p[None, :], total, mask=o_live[:, None] & p_live[None, :])


def gated_linear(
    W: Tensor,
    Z: Tensor,
    *,
    rows: Tensor | None = None,
    cols: Tensor | None = None,
    scale: Tensor | None = None,
    transpose: bool = False,
    precision: str = "ieee",
) -> Tensor:
    """W' Z, or W'ᵀ Z with `transpose`; shapes as in specxai.native.gated_linear, on one CUDA device.

    Indices are not checked against W: that would wait for the device.  `precision` is Triton's `input_precision` for
    float32: "ieee", or "tf32x3" for tensor cores at 7e-8 relative operand rounding, or "tf32" at 3e-4.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not fit, with the values found.
    """
    n_rows = W.shape[0] if rows is None else len(rows)
    n_cols = W.shape[1] if cols is None else len(cols)
    n_in, n_out = (n_rows, n_cols) if transpose else (n_cols, n_rows)
    _check(W, Z, rows, cols, scale, n_in, n_rows)
    out = Z.new_empty((n_out, Z.shape[1]))
    if out.numel() == 0:
        return out
    stride_out, stride_in = (W.stride(1), W.stride(0)) if transpose else (W.stride(0), W.stride(1))
    grid = (triton.cdiv(n_out, BLOCK_OUT), triton.cdiv(Z.shape[1], BLOCK_PROBES))
    with torch.cuda.device_of(W):
        gated_linear_kernel[grid](
            W,
            rows,
            cols,
            scale,
            Z,
            out,
            n_out,
            n_in,
            Z.shape[1],
            stride_out,
            stride_in,
            TRANSPOSE=transpose,
            HAS_ROWS=rows is not None,
            HAS_COLS=cols is not None,
            HAS_SCALE=scale is not None,
            PRECISION=precision,
            BLOCK_OUT=BLOCK_OUT,
            BLOCK_PROBES=BLOCK_PROBES,
            BLOCK_IN=BLOCK_IN,
            enable_fp_fusion=True,
        )
    return out


def _check(
    W: Tensor, Z: Tensor, rows: Tensor | None, cols: Tensor | None, scale: Tensor | None, n_in: int, n_rows: int
) -> None:
    if W.dim() != 2 or Z.dim() != 2:
        raise ValueError(f"W and Z must be matrices, got shapes {tuple(W.shape)} and {tuple(Z.shape)}")
    if W.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"W must be float32 or float64, got {W.dtype}")
    if len(Z) != n_in:
        raise ValueError(f"Z has {len(Z)} rows but the stage reads {n_in} live units")
    if scale is not None and scale.shape != (n_rows,):
        raise ValueError(f"scale has shape {tuple(scale.shape)} but there are {n_rows} live rows")
    for name, t, dtype in (
        ("Z", Z, W.dtype),
        ("scale", scale, W.dtype),
        ("rows", rows, torch.int64),
        ("cols", cols, torch.int64),
    ):
        if t is None:
            continue
        if t.dtype is not dtype:
            raise TypeError(f"{name} is {t.dtype}, expected {dtype}")
        if t.device != W.device:
            raise ValueError(f"{name} is on {t.device} but W is on {W.device}")
        if not t.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {t.stride()}")
