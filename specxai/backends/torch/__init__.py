"""The torch engine: plans by indexing, `matmul` and `index_add` on any device; the oracle of every other engine."""

from __future__ import annotations

import torch

from specxai.backends.torch.engine import TorchEngine

__all__ = ["TorchEngine", "eligible"]


def eligible(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[bool, str]:
    """(can the engine run here, why or why not)."""
    if dtype not in (torch.float32, torch.float64):
        return False, f"sums over rows need float32 or float64, the model is {dtype}"
    return True, f"plans in plain PyTorch, on {torch.device(device).type}"
