"""Randomly rotated squares on a black background: the toy data of the paper's section 2.3."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIZE = 64  # pixels of the image's side
SIDE = 32  # pixels of the square's side


def squares(angles: Tensor, size: int = SIZE, side: float = SIDE) -> Tensor:
    """White squares centred on black, turned by `angles` (N,) in radians; (N, size, size) in [0, 1].

    A pixel that the edge crosses gets its share of white, to first order: without that, a rotation by less than a
    pixel would change nothing and then jump.

    >>> import torch
    >>> squares(torch.zeros(1)).sum().item() == 32**2
    True
    """
    if not 0 < side * math.sqrt(2) <= size:
        raise ValueError(f"a square of side {side} cannot turn inside an image of side {size}")
    at = torch.arange(size, dtype=angles.dtype) - (size - 1) / 2
    row, column = at[:, None], at[None, :]
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    outside = torch.maximum((column * cos + row * sin).abs(), (row * cos - column * sin).abs()) - side / 2
    return (0.5 - outside).clamp(0, 1)


def rotated_squares(count: int, generator: torch.Generator, size: int = SIZE, side: float = SIDE) -> Tensor:
    """`count` squares with angles drawn uniformly from a quarter turn, after which they repeat; (count, size, size)."""
    return squares(torch.rand(count, generator=generator) * (torch.pi / 2), size, side)


def split(train: int, test: int, seed: int, size: int = SIZE, side: float = SIDE) -> tuple[Tensor, Tensor]:
    """(train, test) images from one seeded generator."""
    images = rotated_squares(train + test, torch.Generator().manual_seed(seed), size, side)
    return images[:train], images[train:]
