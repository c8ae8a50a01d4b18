"""Gather-GEMM on a GPU: a convolution over live units, the meaning of csrc/cpu/gather_gemm.h, in Triton.

    out[outside[s, o], :] (+)= Σ_t Σ_c W[o, t, c] · in[inside[neighbours[s, t], c], :]

Blocks are [row][probe].  A program owns a tile of outputs of one site and of probes, so that there are no atomics and
bits repeat; the adjoint is the same kernel over the input-centred tables.  There are three ways: live inputs are
gathered and all outputs of a tile computed (gather_inputs.py), live outputs are gathered and all inputs read
(gather_outputs.py), or both, by weights packed per site (gather_sites.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import triton
from torch import Tensor

from specxai.kernels.checks import check_blocks, check_table, reach, require_distinct, unit_of
from specxai.kernels.gather_counts import Counts, count_ways
from specxai.kernels.gather_inputs import ByInputs, by_inputs
from specxai.kernels.gather_outputs import ByOutputs, by_outputs
from specxai.kernels.gather_sites import packed_sites
from specxai.kernels.lists import tap_numbers
from specxai.kernels.precision import dot_mode
from specxai.kernels.row_sum import row_sum
from specxai.kernels.split import FROM_MEMORY, NUMBER, counted_cost, folding, parts_for, workspace
from specxai.kernels.tile import Tile, tile_for, tiles_for


@dataclass(frozen=True)
class Gathering:
    """One direction of a convolution.

    flow            the tables of the way that it runs in
    read, written   rows of block and of out that there must be
    counts          what each way takes
    folds           (outputs of a tile, parts) -> tables of the sum of so many parts
    """

    flow: ByInputs | ByOutputs
    read: int
    written: int
    counts: Counts
    folds: dict[tuple[int, int], tuple] = field(default_factory=dict)

    @property
    def gathers(self) -> str:
        """"inputs", "outputs" or "sites"."""
        return self.flow.gathers

    @property
    def entries(self) -> int:
        """Multiply-adds of one probe, live outputs times live inputs."""
        return self.counts.entries

    @property
    def operations(self) -> dict[str, int]:
        """What is gathered -> multiply-adds of one probe that are computed; without "sites" where its weights would
        take too much memory."""
        return self.counts.operations

    def apart(self) -> Gathering:
        """The same tables; what a product adds to them is not kept by these."""
        return replace(self, flow=self.flow.apart(), folds={})


def gathering(inside: Tensor, outside: Tensor, neighbours: Tensor, weight: Tensor, groups: int,
              device: torch.device | str, prefer: str | None = None, scale: Tensor | None = None,
              made_scale: Tensor | None = None) -> Gathering:
    """Tables of a convolution on `device`.

    Args:
        inside: (positions, groups · inputs) int32 rows of the block that is read, -1 for a dead unit.
        outside: (sites, groups · outputs) int32 rows that are written, no two the same, -1 for a dead unit.
        neighbours: (sites, taps) int32 positions, -1 for none.
        weight: (groups · outputs, taps, inputs) float32 or float64.
        scale, made_scale: what each unit of `inside` is multiplied by first, and each of `outside` afterwards, of
            their shapes and the weights' dtype; ones if None.
        prefer: "inputs" or "outputs", which are gathered, or "sites" for both; by counts if None.

    Raises:
        TypeError, ValueError: dtypes or shapes that do not fit, with the values found; or weights packed per site that
            take too much memory.
    """
    _check(inside, outside, neighbours, weight, groups)
    for name, t, like in (("scale", scale, inside), ("made_scale", made_scale, outside)):
        if t is not None and (t.shape != like.shape or t.dtype is not weight.dtype):
            raise ValueError(f"{name} must be {tuple(like.shape)} of {weight.dtype}, got {tuple(t.shape)} of {t.dtype}")
    inside, outside, neighbours = (t.to(device) for t in (inside, outside, neighbours))
    scale, made_scale = (None if t is None else t.to(device) for t in (scale, made_scale))
    require_distinct("outside", outside)
    read, written = reach(inside), reach(outside)
    live = outside.reshape(len(outside) * groups, -1)
    if made_scale is not None:
        made_scale = made_scale.reshape(live.shape)

    counts = count_ways(inside, outside, neighbours, groups, weight.dtype)
    prefer = prefer or counts.chosen
    if prefer not in counts.operations:
        raise ValueError(f"prefer={prefer!r} is none of {', '.join(counts.operations)}, the ways of this layer; "
                         "weights packed per site are limited by MOST_BYTES and MOST_COPIES in kernels/gather_sites.py")
    if counts.merged is not None and prefer != "sites":
        if scale is not None:
            scale = tap_numbers(scale, neighbours, groups).flatten(1)
        inside, neighbours = counts.merged
        weight = weight.flatten(1)[:, None]
    if prefer == "sites":
        flow = packed_sites(inside, live, neighbours, weight, groups, scale, made_scale)
    elif prefer == "outputs":
        flow = by_outputs(inside, live, neighbours, weight, groups, scale, made_scale)
    else:
        flow = by_inputs(inside, live, neighbours, weight, groups, counts.depth, scale, made_scale)
    return Gathering(flow, read, written, replace(counts, merged=None))


def gather_gemm(tables: Gathering, block: Tensor, out: Tensor, accumulate: bool = False, precision: str = "fp32",
                tile: Tile | None = None, parts: int | None = None) -> None:
    """Write (or add to) the tables' rows of `out` from their rows of `block`.

    Args:
        block: (rows, k) of the weights' dtype, probes contiguous; out: likewise, other rows or other memory.
        precision: one of `PRECISIONS`; "fp64" for float64.
        tile, parts: how it is cut, and into how many sums over inputs; by size if None.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not fit, with the values found.
    """
    weight = tables.flow.weight
    check_blocks(block, out, weight.dtype, weight.device, tables.read, tables.written)
    mode, k = dot_mode(precision, block.dtype), block.shape[1]
    if tables.written == 0 or k == 0:
        return
    tile = tile or tile_for(tables.flow.most, k, precision)
    programs = tables.flow.programs(tile.out)
    parts = parts or parts_for(programs * triton.cdiv(k, tile.probes), tables.flow.chunks)
    to = out if parts == 1 else workspace(out, parts, programs * tile.out)
    unit = unit_of(k, block.stride(0), to.stride(0))
    with torch.cuda.device_of(block):
        tables.flow.run(block, to, accumulate and parts == 1, mode, tile, unit, parts)
        if parts > 1:
            key = tile.out, parts
            if key not in tables.folds:
                tables.folds[key] = folding(tables.flow.rows_of(tile.out), parts)
            row_sum(*tables.folds[key], to, out, accumulate)


def counted_tiles(tables: Gathering, probes: int, precision: str) -> Iterator[tuple[Tile, float]]:
    """(tile, what it takes by counts) of each that so many probes may be cut into, first the one that is by size."""
    flow = tables.apart().flow
    weight = FROM_MEMORY if tables.gathers == "sites" else NUMBER
    for tile in tiles_for(flow.most, probes, precision):
        programs = flow.programs(tile.out) * triton.cdiv(probes, tile.probes)
        yield tile, counted_cost(programs, flow.chunks * flow.depth, tile, parts_for(programs, flow.chunks), weight)


def _check(inside: Tensor, outside: Tensor, neighbours: Tensor, weight: Tensor, groups: int) -> None:
    """Raises TypeError or ValueError."""
    if weight.dim() != 3 or weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"weight must be (outputs, taps, inputs) in float32 or float64, got {tuple(weight.shape)} of "
                        f"{weight.dtype}")
    made, taps, inputs = weight.shape
    for name, t, columns in (("inside", inside, groups * inputs), ("outside", outside, made),
                             ("neighbours", neighbours, taps)):
        check_table(name, t, columns)
    if made % groups:
        raise ValueError(f"{made} outputs do not divide into {groups} groups")
    if len(neighbours) != len(outside):
        raise ValueError(f"neighbours has {len(neighbours)} sites, outside {len(outside)}")
    if reach(neighbours) > len(inside):
        raise ValueError(f"neighbours names position {reach(neighbours) - 1} of {len(inside)}")
