"""The native engine: compiled kernels on the CPU."""

from __future__ import annotations

import torch

from specxai import native
from specxai.backends.native.engine import NativeEngine

__all__ = ["NativeEngine", "eligible"]


def eligible(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[bool, str]:
    """(can the engine run here, why or why not)."""
    ok, reason = native.available()
    if not ok:
        return False, reason
    if torch.device(device).type != "cpu":
        return False, f"the compiled kernels run on the CPU, the model is on {device}"
    if dtype not in (torch.float32, torch.float64):
        return False, f"the compiled kernels take float32 and float64, the model is {dtype}"
    return True, f"{native.simd_level()} kernels"
