"""Lists of what is live in a kernel's tables, on the tables' device: by the compiled CUDA kernels where they are there,
else by PyTorch, with the same result."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.native import cuda


def live_places(mask: Tensor) -> Tensor:
    """Where a mask is set, in order and counted through all its axes: (live,) int32."""
    if cuda.runs_on(mask.device):
        found = cuda.compact(mask.contiguous())
        return found.at[:int(found.count)].clone()  # which leaves the room behind to others
    return mask.flatten().nonzero().flatten().int()


def live_lists(table: Tensor) -> cuda.Lists:
    """The rows of an int32 table (lines, width) that are not -1, line by line, and no entry behind the last."""
    if cuda.runs_on(table.device):
        found = cuda.live_lists(table.contiguous())
        total = int(found.begin[-1])
        return cuda.Lists(found.begin, found.row[:total], found.column[:total])
    live = table >= 0
    line, column = live.nonzero(as_tuple=True)
    sizes = live.sum(1)
    begin = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).int()
    return cuda.Lists(begin, table[line, column], column.int())


def numbers_of(lists: cuda.Lists, numbers: Tensor) -> cuda.Lists:
    """The lists with the numbers of a table (lines, width) in place of its rows."""
    line = torch.arange(len(numbers), device=numbers.device).repeat_interleave(
        lists.begin.diff().long(), output_size=len(lists.row))
    return cuda.Lists(lists.begin, numbers[line, lists.column.long()], lists.column)


def filled_up(lists: cuda.Lists, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns of the lists, each list filled up to a multiple of `size` by rows of -1 and columns of 0; and
    (lines,) int64 where each begins."""
    counts = lists.begin.diff().long()
    padded = -(-counts // size) * size
    begin = padded.cumsum(0) - padded
    total = len(lists.row)
    shift = (begin - lists.begin[:-1]).repeat_interleave(counts, output_size=total)
    place = torch.arange(total, device=shift.device) + shift
    row = lists.row.new_full((int(padded.sum()),), -1)
    column = torch.zeros_like(row, dtype=lists.column.dtype)
    row[place], column[place] = lists.row, lists.column
    return row, column, begin


def tap_rows(inside: Tensor, neighbours: Tensor, groups: int) -> Tensor:
    """Each site's inputs over all taps: (sites, groups, taps, depth) of inside (positions, groups · depth), -1 where
    there is no neighbour."""
    if cuda.runs_on(inside.device):
        return cuda.tap_rows(inside.contiguous(), neighbours.contiguous(), groups)
    padded = torch.cat([inside, inside.new_full((1, inside.shape[1]), -1)])  # which -1 finds
    return padded[neighbours.long()].reshape(*neighbours.shape, groups, -1).transpose(1, 2).contiguous()


def tap_numbers(numbers: Tensor, neighbours: Tensor, groups: int) -> Tensor:
    """The same of numbers, zero where there is no neighbour."""
    padded = torch.cat([numbers, numbers.new_zeros(1, numbers.shape[1])])
    return padded[neighbours.long()].reshape(*neighbours.shape, groups, -1).transpose(1, 2).contiguous()
