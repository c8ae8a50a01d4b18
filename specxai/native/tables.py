"""Index tables of a plan, int32 on the CPU: -1 stands for a dead unit, or for no neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.native.checks import require_contiguous, require_plain
from specxai.native.module import compiled


def map_rows(rows: Tensor, table: Tensor) -> Tensor:
    """table[rows] with -1 kept, in a new tensor of the shape of `rows`.

    >>> def i(*values): return torch.tensor(values, dtype=torch.int32)
    >>> map_rows(i(2, -1, 0), i(7, 8, 9)).tolist()
    [9, -1, 7]
    """
    require_contiguous("table", table, torch.int32, 1)
    whole = require_plain("rows", rows, torch.int32).contiguous()
    mapped = torch.empty_like(whole) if whole is rows else whole  # a copy has pages of its own already
    compiled().map_rows(whole.data_ptr(), whole.numel(), table.data_ptr(), table.numel(), mapped.data_ptr())
    return mapped


def count_distinct(rows: Tensor, begin: Tensor) -> Tensor:
    """How many different rows lie in [begin[g], begin[g + 1]): (groups,) int64.

    >>> count_distinct(torch.tensor([4, 0, -1, 4], dtype=torch.int32), torch.tensor([0, 3, 5], dtype=torch.int32))
    tensor([1, 1])
    """
    rows = require_plain("rows", rows, torch.int32).contiguous()
    require_contiguous("begin", begin, torch.int32, 1)
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
    cells = require_plain("cells", cells, torch.bool, 2).contiguous()
    neighbours = require_plain("neighbours", neighbours, torch.int32, 2).contiguous()
    if neighbours.numel() == 0 or cells.shape[1] == 0:  # of which there may be any number
        return torch.zeros(len(neighbours), cells.shape[1], dtype=torch.bool, device="cpu")
    seen = torch.empty(len(neighbours), cells.shape[1], dtype=torch.bool, device="cpu")
    compiled().any_neighbour(cells.data_ptr(), *cells.shape, neighbours.data_ptr(), *neighbours.shape, seen.data_ptr())
    return seen
