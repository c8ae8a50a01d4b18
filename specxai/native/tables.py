"""Index tables of a plan, int32 on the CPU: -1 stands for a dead unit, or for no neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.native.module import compiled


def map_rows(rows: Tensor, table: Tensor) -> Tensor:
    """table[rows] with -1 kept, in a new tensor of the shape of `rows`.

    >>> def i(*values): return torch.tensor(values, dtype=torch.int32)
    >>> map_rows(i(2, -1, 0), i(7, 8, 9)).tolist()
    [9, -1, 7]
    """
    _check("table", table, 1)
    whole = _checked("rows", rows)
    mapped = torch.empty_like(whole) if whole is rows else whole  # a copy has pages of its own already
    compiled().map_rows(whole.data_ptr(), whole.numel(), table.data_ptr(), table.numel(), mapped.data_ptr())
    return mapped


def count_distinct(rows: Tensor, begin: Tensor) -> Tensor:
    """How many different rows lie in [begin[g], begin[g + 1]): (groups,) int64.

    >>> count_distinct(torch.tensor([4, 0, -1, 4], dtype=torch.int32), torch.tensor([0, 3, 5], dtype=torch.int32))
    tensor([1, 1])
    """
    rows = _checked("rows", rows)
    _check("begin", begin, 1)
    if len(begin) == 0:
        raise ValueError("begin must hold one number more than there are groups, so at least one; got none")
    counts = torch.zeros(len(begin) - 1, dtype=torch.int64, device="cpu")
    compiled().count_distinct(rows.data_ptr(), rows.numel(), begin.data_ptr(), len(counts), counts.data_ptr())
    return counts


def any_neighbour(cells: Tensor, neighbours: Tensor) -> Tensor:
    """Is a cell set at any neighbour?  cells (n, groups) bool, neighbours (m, taps): (m, groups) bool.

    >>> any_neighbour(torch.tensor([[True], [False]]), torch.tensor([[1, -1], [1, 0]], dtype=torch.int32)).tolist()
    [[False], [True]]
    """
    cells, neighbours = _checked("cells", cells, 2, torch.bool), _checked("neighbours", neighbours, 2)
    if neighbours.numel() == 0 or cells.shape[1] == 0:  # of which there may be any number
        return torch.zeros(len(neighbours), cells.shape[1], dtype=torch.bool, device="cpu")
    seen = torch.empty(len(neighbours), cells.shape[1], dtype=torch.bool, device="cpu")
    compiled().any_neighbour(cells.data_ptr(), *cells.shape, neighbours.data_ptr(), *neighbours.shape, seen.data_ptr())
    return seen


def _check(name: str, t: Tensor, ndim: int | None = None, dtype: torch.dtype = torch.int32) -> None:
    """Is it a tensor of this dtype, in one piece, on the CPU, of `ndim` axes where that is given?"""
    _checked(name, t, ndim, dtype)
    if not t.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {t.stride()}; call .contiguous()")


def _checked(name: str, t: Tensor, ndim: int | None = None, dtype: torch.dtype = torch.int32) -> Tensor:
    """The same in one piece."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype is not dtype or t.device.type != "cpu" or t.layout is not torch.strided:
        raise ValueError(f"{name} must be contiguous {dtype} on the CPU, got {t.dtype} on {t.device}"
                         + ("" if t.layout is torch.strided else f" of layout {t.layout}"))
    if ndim is not None and t.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {tuple(t.shape)}")
    return t.contiguous()
