"""Factors as a precision rounds them: what tensor cores are given, in plain torch; and what is rounded when stored."""

from __future__ import annotations

import torch
from torch import Tensor

from tolerances import RELATIVE

TF32_BITS = 13  # of a float32 that are cut off


def factors(x: Tensor, precision: str) -> Tensor:
    """x as the interpreter multiplies it: split factors are exact there."""
    if precision == "bf16":
        return x.bfloat16().float()
    if precision == "tf32":
        exponent = torch.frexp(x).exponent
        unit = torch.ldexp(torch.ones_like(x), exponent - 24 + TF32_BITS)
        return (x / unit).round() * unit  # ties to even
    return x


def assert_rounded(got: Tensor, want: Tensor, sums: torch.dtype) -> None:
    """Entry by entry: a sum in the dtype `sums`, rounded to the nearest of got's dtype; `want` is float64."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    stored = torch.finfo(got.dtype)
    rounding = 0.0 if got.dtype is sums else stored.eps / 2
    bound = rounding * want.abs() + RELATIVE[sums] * want.abs().max() + stored.tiny
    error = (got.double() - want).abs()
    assert bool((error <= bound).all()), f"off by {(error / bound).max():.2f} of the bound for {got.dtype}"
