"""Packed GEMM on a GPU: a fully connected layer over live units.

    out[to[o], :] (+)= scale[o] · Σ_i W[o, i] · in[source[i], :]

W holds live units alone, packed once for all probes, and one copy of it serves both directions: the adjoint reads it
across.  Blocks are [row][probe].  Where few programs would leave a card empty the sum over inputs is split; the parts
are then added in order by `row_sum`, so that bits repeat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from specxai.kernels.blocks import fetch, put, zeros
from specxai.kernels.checks import check_blocks, reach, require_distinct, unit_of
from specxai.kernels.precision import dot_mode, multiply
from specxai.kernels.row_sum import row_sum
from specxai.kernels.split import counted_cost, folding, parts_for, workspace
from specxai.kernels.tile import Tile, filled, tile_for, tiles_for

DEPTH = 32  # inputs that a program multiplies at once


@triton.jit
def packed_gemm_kernel(
    weight,
    source,
    to,
    scale,
    block,
    out,
    n_chunks,
    part_chunks,
    part_rows,
    weight_units,
    probe_units,
    in_units,
    out_units,
    MODE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SPLIT: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PROBES_FIRST: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_PROBES: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """A tile of BLOCK_OUT outputs and BLOCK_PROBES probes, of a part of the inputs where SPLIT.

    weight         (outputs, inputs), TRANSPOSED (inputs, outputs), both filled up to whole tiles with zeros
    source, to     rows of block and out for each input and output, -1 for none
    part_chunks    chunks of BLOCK_IN inputs that a part has, of n_chunks
    part_rows      SPLIT: rows of out for each part, which then gets output o of part s in row s · part_rows + o
    weight_units   of a row, in multiples of 16; the other *_units in multiples of UNIT
    """
    o = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    p = tl.program_id(1) * BLOCK_PROBES + tl.arange(0, BLOCK_PROBES)
    k = tl.arange(0, BLOCK_IN)
    p_live = p < probe_units * UNIT
    pitch = weight_units.to(tl.int64) * 16
    total = zeros(BLOCK_OUT, BLOCK_PROBES, PROBES_FIRST, out.dtype.element_ty)
    first = tl.program_id(2) * part_chunks
    for i in range(first, tl.minimum(first + part_chunks, n_chunks)):
        c = i * BLOCK_IN + k
        z = fetch(block, tl.load(source + c), p, p_live, in_units * UNIT, PROBES_FIRST)
        if PROBES_FIRST:
            if TRANSPOSED:
                w = tl.load(weight + c[:, None] * pitch + o[None, :])
            else:
                w = tl.load(weight + o[None, :] * pitch + c[:, None])
            total = multiply(z, w, total, MODE)
        else:
            if TRANSPOSED:
                w = tl.load(weight + c[None, :] * pitch + o[:, None])
            else:
                w = tl.load(weight + o[:, None] * pitch + c[None, :])
            total = multiply(w, z, total, MODE)
    if SPLIT:
        row = tl.program_id(2) * part_rows + o
    else:
        row = tl.load(to + o)
    if HAS_SCALE:
        factor = tl.load(scale + o)
        if PROBES_FIRST:
            total *= factor[None, :]
        else:
            total *= factor[:, None]
    put(total, out, row, p, p_live, out_units * UNIT, ACCUMULATE, PROBES_FIRST)


@dataclass(frozen=True)
class Packed:
    """A fully connected layer's live units on the device; see `packed_gemm_kernel`.

    weight     (outputs, inputs), TRANSPOSED (inputs, outputs), filled up
    outputs, inputs   that are live
    folds      parts -> begin, to, source, scale of the sum of so many parts
    """

    weight: Tensor
    source: Tensor
    to: Tensor
    scale: Tensor | None
    transposed: bool
    outputs: int
    inputs: int
    read: int
    written: int
    folds: dict[int, tuple] = field(default_factory=dict)

    def apart(self) -> Packed:
        """The same layer; what a product adds to it is not kept by this one."""
        return replace(self, folds={})

    def adjoint(self, to: Tensor) -> Packed:
        """The adjoint over the same weights, from the layer's `to` to the rows `to`, (inputs,) int32, -1 for none."""
        if self.scale is not None:
            raise ValueError("a scale of the outputs has no adjoint here: pack the weights with it")
        _check_rows("to", to, self.inputs)
        require_distinct("to", to)
        rows = _longer(to, len(self.source), -1).to(self.weight.device)
        return Packed(self.weight, self.to, rows, None, not self.transposed, self.inputs, self.outputs, self.written,
                      reach(to))


def packed(weight: Tensor, source: Tensor, to: Tensor, scale: Tensor | None = None) -> Packed:
    """A layer over live units on the weights' device.

    Args:
        weight: (outputs, inputs) float32 or float64, of live units.
        source: (inputs,) int32 rows of the block that is read, -1 for none.
        to: (outputs,) int32 rows that are written, no two the same, -1 for none.
        scale: (outputs,) factors of the results; ones if None.

    Raises:
        TypeError, ValueError: dtypes or shapes that do not fit, with the values found.
    """
    if weight.dim() != 2 or weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"weight must be (outputs, inputs) in float32 or float64, got {tuple(weight.shape)} of "
                        f"{weight.dtype}")
    _check_rows("source", source, weight.shape[1])
    _check_rows("to", to, weight.shape[0])
    require_distinct("to", to)
    if scale is not None and (scale.shape != to.shape or scale.dtype is not weight.dtype):
        raise ValueError(f"scale must be {len(to)} factors of {weight.dtype}, got {tuple(scale.shape)} of "
                         f"{scale.dtype}")
    (outputs, inputs), device = weight.shape, weight.device
    full = weight.new_zeros(_whole(outputs), _whole(inputs))
    full[:outputs, :inputs] = weight
    if scale is not None:
        scale = _longer(scale, len(full), 0)
    return Packed(full, _longer(source, full.shape[1], -1).to(device), _longer(to, len(full), -1).to(device),
                  None if scale is None else scale.to(device), False, outputs, inputs, reach(source), reach(to))


def packed_gemm(layer: Packed, block: Tensor, out: Tensor, accumulate: bool = False, precision: str = "fp32",
                tile: Tile | None = None, parts: int | None = None) -> None:
    """Write (or add to) the layer's rows of `out` from its rows of `block`.

    Args:
        block: (rows, k) of the weights' dtype, probes contiguous; out: likewise, other rows or other memory.
        precision: one of `PRECISIONS`; "fp64" for float64.
        tile, parts: how it is cut, and into how many sums over inputs; by size if None.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not fit, with the values found.
    """
    check_blocks(block, out, layer.weight.dtype, layer.weight.device, layer.read, layer.written)
    mode = dot_mode(precision, block.dtype)
    k = block.shape[1]
    if layer.outputs == 0 or k == 0:
        return
    tile = tile or tile_for(layer.outputs, k, precision)
    grid = triton.cdiv(layer.outputs, tile.out), triton.cdiv(k, tile.probes)
    chunks = triton.cdiv(layer.inputs, DEPTH)
    parts = parts or parts_for(grid[0] * grid[1], chunks)
    each = triton.cdiv(chunks, parts)
    to, rows = out, len(layer.to)
    if parts > 1:
        to = workspace(out, parts, rows)
    unit = unit_of(k, block.stride(0), to.stride(0))
    with torch.cuda.device_of(block):
        packed_gemm_kernel[(*grid, parts)](
            layer.weight, layer.source, layer.to, layer.scale, block, to,
            chunks, each, rows, layer.weight.shape[1] // 16, k // unit, block.stride(0) // unit, to.stride(0) // unit,
            MODE=mode, HAS_SCALE=layer.scale is not None and parts == 1, ACCUMULATE=accumulate and parts == 1,
            SPLIT=parts > 1, TRANSPOSED=layer.transposed, PROBES_FIRST=tile.probes_first, UNIT=unit,
            BLOCK_OUT=tile.out, BLOCK_PROBES=tile.probes, BLOCK_IN=DEPTH, num_warps=tile.warps, num_stages=tile.stages)
        if parts > 1:
            if parts not in layer.folds:
                layer.folds[parts] = folding(layer.to, parts, layer.scale)
            row_sum(*layer.folds[parts], to, out, accumulate)


def counted_cuts(layer: Packed, probes: int, precision: str) -> Iterator[tuple[Tile, int, float]]:
    """(tile, parts, what they take by counts) of each way to cut so many probes, first the one that is by size."""
    chunks = triton.cdiv(layer.inputs, DEPTH)
    for k, tile in enumerate(tiles_for(layer.outputs, probes, precision)):
        programs = triton.cdiv(layer.outputs, tile.out) * triton.cdiv(probes, tile.probes)
        parts = parts_for(programs, chunks)
        # Of the tile by size also half and twice as many parts: how full a card is with so many is a guess.
        for each in dict.fromkeys([parts, max(1, parts // 2), min(chunks, 2 * parts)] if k == 0 else [parts]):
            yield tile, each, counted_cost(programs, layer.inputs, tile, each)


def _check_rows(name: str, rows: Tensor, size: int) -> None:
    if rows.shape != (size,):
        raise ValueError(f"{name} must have {size} entries for the weights, got {tuple(rows.shape)}")
    if rows.dtype is not torch.int32:
        raise TypeError(f"{name} is {rows.dtype}, expected torch.int32")


def _whole(units: int) -> int:
    """Whole tiles of outputs in one direction and whole chunks of inputs in the other."""
    return max(DEPTH, filled(units))


def _longer(t: Tensor, size: int, value: int) -> Tensor:
    return torch.cat([t, t.new_full((size - len(t),), value)])
