"""Full float32 products while a solver runs.

TF32 and bfloat16 products, which PyTorch may use for float32 matrices and does use for float32 convolutions on CUDA,
fall far below the rounding floor that every certificate assumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["full_precision"]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No TF32, no bfloat16, no autocast and no autograd inside; the caller's settings come back afterwards.

    The settings are PyTorch's per-backend ones: the older `torch.get_float32_matmul_precision` raises where a user has
    set those.
    """
    backends = torch.backends
    switches = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
