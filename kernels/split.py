"""Sums that are split where few programs would leave a card empty: a program sums a part of the inputs into a
workspace, and `row_sum` adds the parts in order, so that bits repeat."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specxai.kernels.tile import PANELS, Tile

PROGRAMS = 264  # two for each multiprocessor of an H100
LEAST_CHUNKS = 8  # of a part of a split sum
# Multiply-adds of a TF32x3 product in the time of a number from an H100's second-level cache: 82e12 over 1.4e12.
NUMBER = 60
FROM_MEMORY = 98  # the same from its memory: over 0.84e12


@triton.jit
def part_of(begin, end, SPLIT: tl.constexpr):
    """The chunks of [begin, end) that this program sums: its third axis is the part."""
    if SPLIT:
        part, parts = tl.program_id(2), tl.num_programs(2)
        return begin + (end - begin) * part // parts, begin + (end - begin) * (part + 1) // parts
    else:
        return begin, end


def parts_for(programs: int, chunks: int) -> int:
    """Parts of a sum of so many chunks that fill a card, each with enough of them.

    >>> parts_for(1000, 256), parts_for(10, 256), parts_for(1, 7)
    (1, 26, 1)
    """
    return max(1, min(PROGRAMS // max(1, programs), chunks // LEAST_CHUNKS))


def counted_cost(programs: int, inputs: int, tile: Tile, parts: int, weight: int = NUMBER) -> float:
    """What a product takes by counts, in multiply-adds that one program after the other makes on a full card.

    Args:
        programs: of one part, those of all probes included.
        inputs: that a sum is over.
        parts: of each sum, which pass through memory where there are several.
        weight: what reading one takes, NUMBER or FROM_MEMORY.

    >>> narrow, wide = Tile(64, 64, False, 4, 4), Tile(128, 64, False, 8, 4)
    >>> counted_cost(528, 512, narrow, 1) / counted_cost(264, 512, wide, 1)
    1.3333333333333333
    """
    size = tile.out * tile.probes
    part = inputs / parts * max(size, weight * tile.out + NUMBER * tile.probes)
    part += 2 * NUMBER * size if parts > 1 else 0
    return part * triton.cdiv(programs * parts, PROGRAMS)


def most_part_rows() -> int:
    """Rows that the parts of a split sum take at most."""
    return PROGRAMS * PANELS[-1]


def workspace(out: Tensor, parts: int, rows: int) -> Tensor:
    """(parts · rows, k) for the parts of sums of `out` (any, k), whose rows are filled up to sixteen bytes."""
    k = out.shape[1]
    return out.new_empty(parts * rows, -(-k // 4) * 4)[:, :k]


def folding(to: Tensor, parts: int, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """begin, to, source and scale of `row_sum` over the parts, which lie one after the other in a workspace; part p of
    what goes to row to[i], -1 for none, is its row p · len(to) + i."""
    at = (to >= 0).nonzero().flatten()
    rows = torch.arange(parts, device=at.device) * len(to)
    begin = torch.arange(len(at) + 1, dtype=torch.int32, device=at.device) * parts
    factors = None if scale is None else scale[at].repeat_interleave(parts)
    return begin, to[at], (at[:, None] + rows).flatten().int(), factors
