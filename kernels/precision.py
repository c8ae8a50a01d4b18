"""How a tile is multiplied: names of precisions, and what each means to `tl.dot`.

fp32     float32 multiply-adds, no tensor cores
tf32     one product of 11-bit factors; 3e-4 of relative rounding
tf32x3   each factor as the sum of two of tf32, three products; 7e-8
bf16     one product of 8-bit factors
bf16x3   two of bfloat16, three products; 4e-6
bf16x6   three of bfloat16, six products; 6e-9
fp64     float64 multiply-adds, of float64 blocks
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PRECISIONS = ("fp32", "tf32", "tf32x3", "bf16", "bf16x3", "bf16x6")  # of float32 blocks


def dot_mode(precision: str, dtype: torch.dtype) -> str:
    """The `MODE` of `multiply` for blocks of this dtype.

    The interpreter does not know split factors, which are taken for exact ones there; its products of bfloat16 are
    wrong, so that factors are rounded to bfloat16 and multiplied as float32.

    Raises:
        ValueError: an unknown precision, or one that blocks of this dtype do not have.
    """
    if dtype is torch.float64:
        if precision != "fp64":
            raise ValueError(f"float64 blocks are multiplied in fp64, got precision {precision!r}")
        return "ieee"
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r} of {dtype} blocks; choose {', '.join(PRECISIONS)}")
    if INTERPRETED:
        return {"bf16": "rounded", "tf32": "tf32"}.get(precision, "ieee")
    return "ieee" if precision == "fp32" else precision


@triton.jit
def rounded(x, BITS: tl.constexpr):
    """float32 x to the nearest of those whose last BITS bits are zero, ties to even."""
    bits = x.to(tl.int32, bitcast=True)
    bits += (1 << (BITS - 1)) - 1 + ((bits >> BITS) & 1)
    return ((bits >> BITS) << BITS).to(tl.float32, bitcast=True)


@triton.jit
def multiply(a, b, total, MODE: tl.constexpr):
    """total + a b, of a (m, k) and b (k, n)."""
    if MODE == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    elif MODE == "rounded":
        return tl.dot(rounded(a, 16), rounded(b, 16), total, input_precision="ieee")
    elif MODE == "tf32":
        # The instruction would cut off what is rounded here; and factors that pass through registers may be copied
        # sixteen bytes at a time, whatever order the instruction wants them in.
        return tl.dot(rounded(a, 13), rounded(b, 13), total, input_precision="tf32")
    else:
        return tl.dot(a, b, total, input_precision=MODE, out_dtype=total.dtype)


INTERPRETED = not isinstance(multiply, triton.JITFunction)  # in Triton's interpreter, on the CPU
CUTS_OFF = tl.constexpr(INTERPRETED)  # the interpreter makes bfloat16 of float32 so, whatever rounding is asked for


@triton.jit
def narrowed(x, dtype: tl.constexpr):
    """x in `dtype`, rounded to nearest, ties to even; in the interpreter float32 below 2**-126 is not."""
    if CUTS_OFF and dtype == tl.bfloat16:
        x = rounded(x, 16)
    return x.to(dtype)
