"""What every kernel's wrapper asks of its tensors, once and without waiting for the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNIT = 16  # numbers: what Triton asks of a size before it believes that addresses are aligned


def check_blocks(block: Tensor, out: Tensor, dtype: torch.dtype, device: torch.device, read: int, written: int) -> None:
    """Blocks (rows, k) of this dtype and device, probes contiguous, with rows up to those that tables name.

    Raises TypeError or ValueError with the values found.
    """
    for name, t, least in (("block", block, read), ("out", out, written)):
        if t.dim() != 2 or len(t) < least:
            raise ValueError(f"{name} must be (rows, probes) with at least {least} rows, got {tuple(t.shape)}")
        if t.dtype is not dtype:
            raise TypeError(f"{name} is {t.dtype}, expected {dtype}")
        if t.device != device:
            raise ValueError(f"{name} is on {t.device} but the tables are on {device}")
        if t.shape[1] > 1 and t.stride(1) != 1:
            raise ValueError(f"probes must be contiguous, got strides {t.stride()} of {name}")
    if block.shape[1] != out.shape[1]:
        raise ValueError(f"block and out must hold as many probes a row, got {tuple(block.shape)}, {tuple(out.shape)}")


def check_tensor(name: str, t: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    """A contiguous tensor of this dtype and shape, on this device.

    Raises TypeError or ValueError with the values found.
    """
    if t.dtype is not dtype:
        raise TypeError(f"{name} is {t.dtype}, expected {dtype}")
    if tuple(t.shape) != shape:
        raise ValueError(f"{name} must be {shape}, got {tuple(t.shape)}")
    if t.device != device:
        raise ValueError(f"{name} is on {t.device}, expected {device}")
    if not t.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {t.stride()}")


def check_table(name: str, table: Tensor, columns: int) -> None:
    """An int32 table (any, columns)."""
    if table.dtype is not torch.int32:
        raise TypeError(f"{name} is {table.dtype}, expected torch.int32")
    if table.dim() != 2 or table.shape[1] != columns:
        raise ValueError(f"{name} must have {columns} columns, got {tuple(table.shape)}")


def unit_of(*sizes: int) -> int:
    """The largest power of two up to UNIT that divides all sizes.

    >>> unit_of(64, 24), unit_of(7, 16)
    (8, 1)
    """
    return math.gcd(UNIT, *sizes)


def reach(rows: Tensor) -> int:
    """One more than the largest row; 0 where there is none."""
    return int(rows.max()) + 1 if rows.numel() else 0


def require_distinct(name: str, rows: Tensor) -> None:
    live = rows[rows >= 0]
    if len(live.unique()) != len(live):
        raise ValueError(f"{name} holds a row twice: two programs would write it")
