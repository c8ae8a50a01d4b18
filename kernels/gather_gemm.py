"""Gather-GEMM on a GPU: a convolution over live units, the meaning of csrc/cpu/gather_gemm.h, in Triton.

    out[outside[s, o], :] (+)= Σ_t Σ_c W[o, t, c] · in[inside[neighbours[s, t], c], :]

Blocks are [row][probe].  A program owns a tile of outputs of one site and of probes, so that there are no atomics and
bits repeat; the adjoint is the same kernel over the input-centred tables.  Of the inputs only live ones are read; all
outputs of the tile are computed and the live ones stored.  Live inputs lie in lists, one a position and group, filled
up to whole chunks; a site walks the chunks of its neighbours, one loop over all taps.  Where positions have few of
them a site has one list over all taps instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from specxai.kernels.blocks import fetch, put, scaled, zeros
from specxai.kernels.checks import check_blocks, check_table, reach, require_distinct, unit_of
from specxai.kernels.gather_outputs import DEPTH, ByOutputs, by_outputs, chunks_by_outputs, padded_outputs
from specxai.kernels.lists import filled_up, live_lists, live_places, numbers_of, tap_numbers, tap_rows
from specxai.kernels.precision import dot_mode, multiply
from specxai.kernels.row_sum import row_sum
from specxai.kernels.split import counted_cost, folding, part_of, parts_for, workspace
from specxai.kernels.tile import PANELS, Tile, filled, tile_for, tiles_for


@triton.jit
def gather_gemm_kernel(
    tiles,
    chunk_begin,
    chunk_at,
    chunk_weight,
    rows,
    channel,
    weight,
    outside,
    factor,
    made_factor,
    block,
    out,
    n_panels,
    n_groups,
    group_depth,
    probe_units,
    in_units,
    out_units,
    MODE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SPLIT: tl.constexpr,
    PROBES_FIRST: tl.constexpr,
    SCALES: tl.constexpr,
    SCALES_MADE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_PROBES: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """A tile of BLOCK_OUT outputs and BLOCK_PROBES probes of one site.

    tiles          (programs,) site and group · n_panels + panel of outputs
    chunk_begin    (sites · groups + 1,) the chunks before each
    chunk_at       (chunks,) which BLOCK_IN entries of rows and channel
    chunk_weight   (chunks,) the tap's first row of the group's weights
    rows, channel  (entries,) a live input's row of block, -1 for none, and its channel in the group
    weight         (groups · group_depth, n_panels · BLOCK_OUT)
    outside        (sites · groups, n_panels · BLOCK_OUT) rows of out, -1 for none
    factor         of each entry of rows, if SCALES; made_factor of each of outside, if SCALES_MADE
    *_units        in multiples of UNIT, which tells the compiler how addresses are aligned
    PROBES_FIRST   probes are the first axis of the product, outputs the second; else the other way round
    SPLIT          a part of the sum, to a workspace (kernels/split.py)
    """
    tile = tl.load(tiles + tl.program_id(0))
    site, panel = tile // n_panels, tile % n_panels
    o = panel * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    p = tl.program_id(1) * BLOCK_PROBES + tl.arange(0, BLOCK_PROBES)
    k = tl.arange(0, BLOCK_IN)
    p_live = p < probe_units * UNIT
    depth = (site % n_groups) * group_depth
    total = zeros(BLOCK_OUT, BLOCK_PROBES, PROBES_FIRST, out.dtype.element_ty)
    first, last = part_of(tl.load(chunk_begin + site), tl.load(chunk_begin + site + 1), SPLIT)
    for i in range(first, last):
        at = tl.load(chunk_at + i) * BLOCK_IN + k
        z = fetch(block, tl.load(rows + at), p, p_live, in_units * UNIT, PROBES_FIRST)
        if SCALES:
            z = scaled(z, tl.load(factor + at), PROBES_FIRST)
        w_row = (depth + tl.load(chunk_weight + i) + tl.load(channel + at)).to(tl.int64) * (n_panels * BLOCK_OUT)
        if PROBES_FIRST:
            total = multiply(z, tl.load(weight + w_row[:, None] + o[None, :]), total, MODE)
        else:
            total = multiply(tl.load(weight + w_row[None, :] + o[:, None]), z, total, MODE)
    if SCALES_MADE:
        total = scaled(total, tl.load(made_factor + site.to(tl.int64) * (n_panels * BLOCK_OUT) + o), PROBES_FIRST)
    if SPLIT:
        to = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    else:
        to = tl.load(outside + site.to(tl.int64) * (n_panels * BLOCK_OUT) + o)
    put(total, out, to, p, p_live, out_units * UNIT, ACCUMULATE, PROBES_FIRST)


WIDE, NARROW = 32, 16  # entries of a chunk
FEWER = 0.8  # operations at which gathering outputs is worth reading dead inputs
# Lists of a site's own, over all taps, where those of positions would be that much longer by filling up their chunks,
# as with three channels; and where sites · taps · inputs are no more than so many.
MERGE, MOST_MERGED = 1.25, 1 << 26


def depth_for(counts: Tensor) -> int:
    """Entries of a chunk for lists of so many: WIDE if that fills up few more."""
    wide, narrow = (int(_whole(counts, depth).sum()) for depth in (WIDE, NARROW))
    return WIDE if wide <= 1.2 * narrow else NARROW


@dataclass(frozen=True)
class ByInputs:
    """Tables of this dataflow on the device; see `gather_gemm_kernel`.

    chunks   of a site and group, on average
    """

    tiles: dict[int, Tensor]
    chunk_begin: Tensor
    chunk_at: Tensor
    chunk_weight: Tensor
    rows: Tensor
    channel: Tensor
    weight: Tensor
    outside: Tensor
    groups: int
    group_depth: int
    depth: int
    chunks: int
    factor: Tensor | None = None
    made_factor: Tensor | None = None

    def apart(self) -> ByInputs:
        return self

    def programs(self, size: int) -> int:
        return len(self.tiles[size])

    def rows_of(self, size: int) -> Tensor:
        """Rows of out of each program's outputs, -1 for none."""
        return self.outside.reshape(-1, size)[self.tiles[size].long()].flatten()

    def run(self, block: Tensor, out: Tensor, accumulate: bool, mode: str, tile: Tile, unit: int, parts: int) -> None:
        programs, k = self.tiles[tile.out], block.shape[1]
        gather_gemm_kernel[(len(programs), triton.cdiv(k, tile.probes), parts)](
            programs, self.chunk_begin, self.chunk_at, self.chunk_weight, self.rows, self.channel, self.weight,
            self.outside, self.factor, self.made_factor, block, out, self.weight.shape[1] // tile.out, self.groups,
            self.group_depth, k // unit, block.stride(0) // unit, out.stride(0) // unit,
            MODE=mode, ACCUMULATE=accumulate, SPLIT=parts > 1, PROBES_FIRST=tile.probes_first,
            SCALES=self.factor is not None, SCALES_MADE=self.made_factor is not None, UNIT=unit,
            BLOCK_OUT=tile.out, BLOCK_PROBES=tile.probes, BLOCK_IN=self.depth, num_warps=tile.warps,
            num_stages=tile.stages)


@dataclass(frozen=True)
class Gathering:
    """One direction of a convolution.

    flow            the tables of the dataflow that computes least
    outputs         of a group
    read, written   rows of block and of out that there must be
    entries         multiply-adds of one probe, live outputs times live inputs
    operations      "inputs" or "outputs", which are gathered -> multiply-adds of one probe that are computed
    folds           (outputs of a tile, parts) -> tables of the sum of so many parts
    """

    flow: ByInputs | ByOutputs
    groups: int
    outputs: int
    read: int
    written: int
    entries: int
    operations: dict[str, int]
    folds: dict[tuple[int, int], tuple] = field(default_factory=dict)

    @property
    def gathers(self) -> str:
        return "outputs" if isinstance(self.flow, ByOutputs) else "inputs"

    def apart(self) -> Gathering:
        """The same tables; what a product adds to them is not kept by these."""
        return replace(self, flow=self.flow.apart(), folds={})

    @property
    def most(self) -> int:
        """Outputs of a group that a site computes at most."""
        return self.flow.most if isinstance(self.flow, ByOutputs) else self.outputs


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
        prefer: "inputs" or "outputs", which are gathered; by counted operations if None.

    Raises:
        TypeError, ValueError: dtypes or shapes that do not fit, with the values found.
    """
    made, taps, inputs = _check(inside, outside, neighbours, weight, groups)
    for name, t, like in (("scale", scale, inside), ("made_scale", made_scale, outside)):
        if t is not None and (t.shape != like.shape or t.dtype is not weight.dtype):
            raise ValueError(f"{name} must be {tuple(like.shape)} of {weight.dtype}, got {tuple(t.shape)} of {t.dtype}")
    inside, outside, neighbours = (t.to(device) for t in (inside, outside, neighbours))
    scale, made_scale = (None if t is None else t.to(device) for t in (scale, made_scale))
    require_distinct("outside", outside)
    sites, outputs, width = len(outside), made // groups, filled(made // groups)
    to = inside.new_full((sites * groups, width), -1)
    to[:, :outputs] = outside.reshape(sites * groups, outputs)
    some = (to >= 0).any(1)

    counts = (inside >= 0).reshape(-1, groups, inputs).sum(2)  # (positions, groups)
    under = _under(counts, neighbours) * some.reshape(sites, groups, 1)  # (sites, groups, taps) live inputs
    entries = int((under.sum(2).flatten() * (to >= 0).sum(1)).sum())
    depth = depth_for(counts)
    merges = taps > 1 and under.numel() * inputs <= MOST_MERGED
    if merges and int(_whole(under, depth).sum()) > MERGE * int(_whole(under.sum(2), NARROW).sum()):
        if scale is not None:
            scale = tap_numbers(scale, neighbours, groups).flatten(1)
        inside, neighbours, weight = _by_site(inside, neighbours, weight, groups)
        taps, inputs = 1, taps * inputs
        counts = under.sum(2)
        depth = depth_for(counts)
    by_inputs = (_under(_whole(counts, depth), neighbours).sum(2).flatten() * _panelled(to, width)).sum()
    live = to[:, :outputs]
    _, there = chunks_by_outputs(inside, neighbours, some, groups)
    fewer = DEPTH * (there.sum((2, 3)).flatten() * padded_outputs(live)).sum()
    operations = {"inputs": int(by_inputs), "outputs": int(fewer)}
    if prefer is None:
        prefer = "outputs" if operations["outputs"] < FEWER * operations["inputs"] else "inputs"
    if prefer == "outputs":
        if made_scale is not None:
            made_scale = made_scale.reshape(live.shape)
        return Gathering(by_outputs(inside, live.contiguous(), neighbours, weight, groups, scale, made_scale), groups,
                         outputs, reach(inside), reach(outside), entries, operations)
    lists = live_lists(inside.reshape(len(inside) * groups, inputs))
    rows, channel, begin = filled_up(lists, depth)
    factor = made_factor = None
    if scale is not None:
        factor, _, _ = filled_up(numbers_of(lists, scale.reshape(len(inside) * groups, inputs)), depth)
    if made_scale is not None:
        made_factor = made_scale.new_zeros(to.shape)
        made_factor[:, :outputs] = made_scale.reshape(sites * groups, outputs)
    chunks = _under(_whole(counts, depth) // depth, neighbours) * some.reshape(sites, groups, 1)
    each = chunks.flatten()
    chunk_begin = torch.cat([each.new_zeros(1), chunks.sum(2).flatten().cumsum(0)])
    which = torch.arange(len(each), device=device).repeat_interleave(each)  # of (site, group, tap)
    step = torch.arange(len(which), device=device) - (each.cumsum(0) - each)[which]
    near = neighbours.long()[:, None, :] * groups + torch.arange(groups, device=device)[:, None]
    chunk_at = begin[near.flatten()[which]] // depth + step

    packed = weight.new_zeros(groups, taps * inputs, width)
    packed[:, :, :outputs] = weight.reshape(groups, outputs, taps * inputs).transpose(1, 2)
    tiles = {size: live_places((to.reshape(sites * groups, -1, size) >= 0).any(2))
             for size in PANELS if width % size == 0}
    chunk = (chunk_begin, chunk_at, (which % taps) * inputs)
    flow = ByInputs(tiles, *(t.int() for t in (*chunk, rows, channel)), packed.flatten(0, 1).to(device), to, groups,
                    taps * inputs, depth, int(each.sum()) // max(1, int(some.sum())), factor, made_factor)
    return Gathering(flow, groups, outputs, reach(inside), reach(outside), entries, operations)


def _panelled(to: Tensor, width: int) -> Tensor:
    """(sites · groups,) outputs that are computed where those of a panel of 128 are if one of them lives."""
    panel = min(width, PANELS[-1])
    return (to.reshape(len(to), -1, panel) >= 0).any(2).sum(1) * panel


def _under(counts: Tensor, neighbours: Tensor) -> Tensor:
    """(positions, groups) numbers of each neighbour, 0 for none: (sites, groups, taps)."""
    counts = torch.cat([counts, counts.new_zeros(1, counts.shape[1])])  # which -1 finds
    return counts[neighbours.long()].transpose(1, 2)


def _by_site(inside: Tensor, neighbours: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same map where each site has a list of its own over all taps."""
    sites = len(neighbours)
    own = tap_rows(inside, neighbours, groups).reshape(sites, -1)
    return own, torch.arange(sites, dtype=torch.int32, device=inside.device)[:, None], weight.flatten(1)[:, None]


def _whole(counts: Tensor, depth: int) -> Tensor:
    return -(-counts // depth) * depth


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
    tile = tile or tile_for(tables.most, k, precision)
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
    for tile in tiles_for(tables.most, probes, precision):
        programs = flow.programs(tile.out) * triton.cdiv(probes, tile.probes)
        yield tile, counted_cost(programs, flow.chunks * flow.depth, tile, parts_for(programs, flow.chunks))


def _check(inside: Tensor, outside: Tensor, neighbours: Tensor, weight: Tensor, groups: int) -> tuple[int, int, int]:
    """(outputs, taps, inputs a group)."""
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
    return made, taps, inputs
