"""Index work of the passes: rows are int32, and -1 stands for a dead unit or for no neighbour.

The compiled module of the tensors' device does it where there is one, PyTorch where there is none, with the same
result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specxai import native
from specxai.native import cuda


def map_rows(rows: Tensor, table: Tensor) -> Tensor:
    """table[rows] with -1 kept, in a new tensor of the shape of `rows`.

    >>> map_rows(torch.tensor([2, -1, 0], dtype=torch.int32), torch.tensor([7, 8, 9], dtype=torch.int32)).tolist()
    [9, -1, 7]
    """
    if cuda.runs_on(rows.device):
        return cuda.map_rows(rows.contiguous(), table)
    if native.available()[0] and rows.device.type == "cpu":
        return native.map_rows(rows, table)
    if len(table) == 0:
        return torch.full_like(rows, -1)
    return torch.where(rows >= 0, table[rows.clamp_min(0).long()], -1)


def count_distinct(rows: Tensor, begin: Tensor) -> Tensor:
    """How many different rows lie in [begin[g], begin[g + 1]): (groups,) int64.

    >>> count_distinct(torch.tensor([4, 0, -1, 4], dtype=torch.int32), torch.tensor([0, 3, 5], dtype=torch.int32))
    tensor([1, 1])
    """
    if native.available()[0]:
        return native.count_distinct(rows, begin)
    seen = torch.zeros(int(begin[-1]) + 1, dtype=torch.int64, device="cpu")  # the first for -1
    seen[rows.flatten().long() + 1] = 1
    seen[0] = 0
    return seen.cumsum(0)[begin.long()].diff()


def any_neighbour(cells: Tensor, neighbours: Tensor) -> Tensor:
    """Is a cell set at any neighbour?  cells (n, groups) bool, neighbours (m, taps): (m, groups) bool.

    >>> any_neighbour(torch.tensor([[True], [False]]), torch.tensor([[1, -1], [1, 0]], dtype=torch.int32)).tolist()
    [[False], [True]]
    """
    if cuda.runs_on(cells.device):
        return cuda.any_neighbour(cells.contiguous(), neighbours.contiguous())
    if native.available()[0] and cells.device.type == "cpu":
        return native.any_neighbour(cells, neighbours)
    cells = torch.cat([cells, cells.new_zeros(1, cells.shape[1])])  # which -1 finds
    seen = cells.new_zeros(len(neighbours), cells.shape[1])
    for under in neighbours.unbind(1):  # tap by tap: all at once would take as much memory as there are taps
        seen |= cells[under.long()]
    return seen


def marked(places: Tensor, chosen: Tensor, size: int) -> Tensor:
    """(size,) bool: the places of the chosen entries; a place below zero is none.

    >>> marked(torch.tensor([2, -1, 0]), torch.tensor([True, True, False]), 3).tolist()
    [False, False, True]
    """
    if places.device.type != "cpu":
        return _marked(places, chosen, size)
    return chosen.new_zeros(size).index_fill_(0, places[chosen & (places >= 0)].long(), True)


def _marked(places: Tensor, chosen: Tensor, size: int) -> Tensor:
    """The same without a wait for the device, as how many are chosen would be: the others mark one place more."""
    found = chosen.new_zeros(size + 1)
    return found.index_fill_(0, torch.where(chosen & (places >= 0), places, size).long(), True)[:size]
