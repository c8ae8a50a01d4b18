"""What the processor can do at most, measured: the roof that kernels are held against."""

from __future__ import annotations

import time

import torch

from specxai.native.checks import suffix
from specxai.native.module import compiled


def multiply_add_peak(dtype: torch.dtype = torch.float32, level: str | None = None, seconds: float = 0.2) -> float:
    """Operations a second of multiply-adds on registers alone, on torch's number of threads; one counts as two.

    The best of five runs of about `seconds` / 5 each: whatever slows one down is not the processor's roof.

    >>> multiply_add_peak(seconds=0.01) > 1e8
    True
    """
    if not 0 < seconds <= 60:
        raise ValueError(f"seconds={seconds!r}: give more than 0 and at most 60")
    kernel, rounds, best = getattr(compiled(), f"multiply_add_{suffix(dtype)}"), 1000, 0.0
    runs = 0
    while runs < 5:
        start = time.perf_counter()
        operations = kernel(rounds, level)
        spent = time.perf_counter() - start
        if spent < seconds / 10:
            rounds *= 2  # too short to be timed
            continue
        best, runs = max(best, operations / spent), runs + 1
    return best
