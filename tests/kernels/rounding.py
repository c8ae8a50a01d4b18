"""Factors as a precision rounds them: what tensor cores are given, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

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
