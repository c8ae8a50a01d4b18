"""What operators and solvers ask of numbers and memory: integers of any kind, room, identity blocks."""

from __future__ import annotations

import ctypes
import operator
import os

import torch

# Identity blocks of `to_dense` are this wide at most, so that no second matrix of full size is ever held.
IDENTITY_BLOCK = 256
MEMORY, GPU_SHARE = 2 << 30, 4  # bytes that one product may hold; on a GPU one part in so many of what is free, if more


def as_integer(value) -> int | None:
    """An integer of any kind (int, NumPy's, a 0-d tensor) as an int; None for anything else, True and False too.

    >>> import numpy
    >>> as_integer(numpy.int64(3)), as_integer(3.0), as_integer(True)
    (3, None, None)
    """
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def default_memory(device: torch.device) -> int:
    """Bytes that one block product may hold where nobody says: 2 GiB, on a GPU a quarter of what is free if that is
    more.

    >>> default_memory(torch.device("cpu")) >> 30
    2
    """
    if device.type != "cuda":
        return MEMORY
    return max(MEMORY, torch.cuda.mem_get_info(device)[0] // GPU_SHARE)


def require_memory(needed: int, device: torch.device, what: str, remedy: str) -> None:
    """MemoryError that says how much is needed where the device's free memory does not hold `needed` bytes."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu" and "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ()):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # all: caches give way
    else:
        return
    if needed > free:
        raise MemoryError(f"{what} needs {needed / 2**30:,.1f} GiB, and there are {free / 2**30:,.1f}; {remedy}")


def give_back() -> None:
    """Give freed memory back to the system where the C library can (glibc): linearising a prompt leaves as much between
    what it keeps as all values take, and the blocks of a sweep, which are larger than any such hole, come on top of it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def identity_blocks(size: int, dtype: torch.dtype, device: torch.device, width: int | None = None):
    """Yield (start, stop, E[:, start:stop]) over the identity E (size, size), `width` columns at a time."""
    width = width or IDENTITY_BLOCK
    for start in range(0, size, width):
        stop = min(start + width, size)
        block = torch.zeros(size, stop - start, dtype=dtype, device=device)
        block[start:stop].fill_diagonal_(1)
        yield start, stop, block
