"""Large tensors on memory that is used again: pages that are new cost more than most products write to them."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.native.module import available, compiled

SMALL = 1 << 20  # bytes; below, malloc itself uses its pages again


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor on the CPU with no values yet; its memory is kept for the next one when its last view is gone.

    >>> empty(3, 2).shape
    torch.Size([3, 2])
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    # Made outside inference mode: other threads write to it, and later products outside may.
    with torch.inference_mode(False):
        if size < SMALL or not available()[0]:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(compiled().Block(size), dtype=dtype).view(shape)


def release_idle() -> None:
    """Give the memory that is kept back to the system."""
    if available()[0]:
        compiled().release_idle()
