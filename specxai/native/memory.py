"""Large tensors on memory that is used again: pages that are new cost more than most products write to them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from specxai.native.module import available, compiled

SMALL = 1 << 20  # bytes; below, malloc itself uses its pages again


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor on the CPU with no values yet; its memory is kept for the next one when its last view is gone.

    >>> empty(3, 2).shape
    torch.Size([3, 2])
    """
    size = math.prod(torch.Size(shape)) * dtype.itemsize
    # Made outside inference mode: other threads write to it, and later products outside may.
    with torch.inference_mode(False):
        if not SMALL <= size < 1 << 62 or not available()[0]:  # torch says what is wrong with more
            return torch.empty(shape, dtype=dtype, device="cpu")
        return torch.frombuffer(compiled().Block(size), dtype=dtype).view(shape)


def release_idle() -> None:
    """Give the memory that is kept back to the system."""
    if available()[0]:
        compiled().release_idle()
