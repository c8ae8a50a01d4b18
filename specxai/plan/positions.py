"""Index tables between the positions of a convolution's two sides, -1 for none, made axis by axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Position i of the fine side is under tap t of position p of the coarse one where i = p·stride − padding +
    t·dilation, axis by axis: fine are a convolution's inputs, and a transposed one's outputs.

    batched   the first axis counts inputs of the network, whose positions never meet
    """

    fine: tuple[int, ...]
    coarse: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    batched: bool = False

    def axes(self) -> list[tuple[int, ...]]:
        return list(zip(self.fine, self.coarse, self.kernel, self.stride, self.padding, self.dilation, strict=True))


@lru_cache(maxsize=256)  # the same for every input
def gathering(geometry: Geometry) -> Tensor:
    """(coarse positions, taps): the fine position."""
    tables = []
    for n, m, kernel, stride, padding, dilation in geometry.axes():
        at = _range(m)[:, None] * stride - padding + _range(kernel) * dilation
        tables.append(torch.where((at >= 0) & (at < n), at, -1))
    return _product(tables, geometry.fine)


@lru_cache(maxsize=256)
def scattering(geometry: Geometry) -> Tensor:
    """(fine positions, taps): the coarse position."""
    tables = []
    for n, m, kernel, stride, padding, dilation in geometry.axes():
        at = _range(n)[:, None] + padding - _range(kernel) * dilation
        tables.append(torch.where((at >= 0) & (at < m * stride) & (at % stride == 0), at // stride, -1))
    return _product(tables, geometry.coarse)


@dataclass(frozen=True)
class Cells:
    """The fine side's positions merged into cells of one stride's length, or of two positions where that is one.

    Where a position has three channels, a cell has as many as a tile of the kernels wants.  Cell q and coarse position
    p meet under the taps p − q·(length / stride), the same for all, in which the weights that do not exist are zero.

    members     (cells, P) fine positions
    taps        (P, T) the tap under which a member meets a merged tap's coarse position
    gathering   (coarse positions, T) cells
    scattering  (cells, T) coarse positions
    across      cells of a line
    cost        operations over those of single positions
    """

    members: Tensor
    taps: Tensor
    gathering: Tensor
    scattering: Tensor
    across: int
    cost: float

    def table(self, rows: Tensor) -> Tensor:
        """(fine positions, channels) rows -> (cells, P · channels)."""
        rows = torch.cat([rows, rows.new_full((1, rows.shape[1]), -1)])
        return rows[self.members].flatten(1)  # -1 is the row that was added

    def of_outputs(self, weight: Tensor) -> Tensor:
        """Weights (outputs, taps, depth) of fine outputs -> (P · outputs, T, depth)."""
        return _or_zero(weight)[:, self.taps].transpose(0, 1).flatten(0, 1)

    def of_inputs(self, weight: Tensor) -> Tensor:
        """Weights (outputs, taps, depth) of fine inputs -> (outputs, T, P · depth)."""
        return _or_zero(weight)[:, self.taps].transpose(1, 2).flatten(2)


@lru_cache(maxsize=256)
def cells(geometry: Geometry) -> Cells:
    axes = geometry.axes()
    lengths = [max(stride, 2) for _, _, _, stride, _, _ in axes]
    if geometry.batched:
        lengths[0] = 1
    parts = [_axis_cells(*axis, length) for axis, length in zip(axes, lengths, strict=True)]
    members, taps, gathered, scattered = zip(*parts, strict=True)
    counts = tuple(len(m) for m in members)
    shared, scattered = _product(taps, geometry.kernel), _product(scattered, geometry.coarse)
    merged, single = (int((table >= 0).sum()) for table in (scattered, gathering(geometry)))
    return Cells(_product(members, geometry.fine), shared, _product(gathered, counts), scattered, counts[-1],
                 len(shared) * merged / max(1, single))


def _axis_cells(n: int, m: int, kernel: int, stride: int, padding: int, dilation: int,
                length: int) -> tuple[Tensor, ...]:
    # A cell's members then begin where a window begins, which makes the merged taps fewest.
    shift = padding % stride
    member, tap = _range(length)[:, None] - shift, _range(kernel)
    places = _range(-(-(n + shift) // length))[:, None] * length
    members = places + member.T
    members = torch.where((members >= 0) & (members < n), members, -1)

    reach = member + padding - tap * dilation  # the coarse position's distance from the cell, in fine positions
    of, under = (reach % stride == 0).nonzero(as_tuple=True)
    step = reach[of, under] // stride
    first = int(step.min())
    taps = torch.full((length, int(step.max()) - first + 1), -1, dtype=torch.int32, device="cpu")
    taps[of, step.long() - first] = tap[under]

    scattered = places // stride + first + _range(taps.shape[1])
    scattered = torch.where((scattered >= 0) & (scattered < m), scattered, -1)
    cell, merged = (scattered >= 0).nonzero(as_tuple=True)
    gathered = torch.full((m, taps.shape[1]), -1, dtype=torch.int32, device="cpu")
    gathered[scattered[cell, merged].long(), merged] = cell.int()
    return members, taps, gathered, scattered


def _or_zero(weight: Tensor) -> Tensor:
    """One tap more, of zeros, which -1 finds."""
    return torch.cat([weight, weight.new_zeros(weight.shape[0], 1, weight.shape[2])], 1)


def _product(tables: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Tables (rows, columns) of one axis each, with entries below its size -> the table of all axes together."""
    dims = len(tables)
    flat = torch.zeros((), dtype=torch.int32, device="cpu")
    valid = torch.ones((), dtype=torch.bool, device="cpu")
    rows, columns = 1, 1
    for axis, (table, size) in enumerate(zip(tables, sizes, strict=True)):
        shape = [1] * (2 * dims)
        shape[axis], shape[dims + axis] = table.shape
        rows, columns = rows * table.shape[0], columns * table.shape[1]
        table = table.reshape(shape)
        flat, valid = flat * size + table, valid & (table >= 0)
    return torch.where(valid, flat, -1).reshape(rows, columns)


def _range(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.int32, device="cpu")
