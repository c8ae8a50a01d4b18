"""The kernels that multiply too little to be bound by it, at sizes of real decoders, against the roof of a copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timing import Clock
from torch import Tensor

# (what, probes, groups, units, rank, dtype of a stream that is added to): norms of GPT-2, of Llamas and wider, and
# GPT-2's softmax.
GROUPS = (("LayerNorm", 64, 427, 768, 2, None), ("RMSNorm onto float32", 64, 427, 2048, 1, torch.float32),
          ("RMSNorm", 64, 427, 4096, 1, None), ("RMSNorm", 64, 128, 8192, 1, None),
          ("softmax", 64, 12 * 427, 427, 1, None))
WEIGHTS = (2, 32, 5632, 2048)  # gate and up of TinyLlama at so many positions
FEW = 2  # probes or positions whose error is looked at


def rows(clock: Clock, dry: bool, copy: float) -> Iterator[dict]:
    """Each is of bfloat16; copy: bytes a second."""
    for case in GROUPS:
        if clock.left < 0:
            return
        yield _groups(clock, dry, copy, *case)
    if clock.left >= 0:
        yield _weights(clock, dry, copy)


def _groups(clock: Clock, dry: bool, copy: float, what: str, probes: int, groups: int, units: int, rank: int,
            stream: torch.dtype | None) -> dict:
    from specxai.kernels.group_rows import group_rows, tile_for

    probes, groups, units = (3, 2, 40) if dry else (probes, groups, units)
    draw = torch.Generator(clock.device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=clock.device)

    block, diagonal = random(probes, groups, units).bfloat16(), random(groups, units)
    left, right = (random(rank, groups, units) / units**0.5 for _ in range(2))
    onto = None if stream is None else random(probes, groups, units).to(stream)
    few = block[:FEW].double()
    sums = torch.einsum("rgj,pgj->rpg", right.double(), few)
    want = diagonal.double() * few + torch.einsum("rgi,rpg->pgi", left.double(), sums)
    want = want if onto is None else want + onto[:FEW].double()
    out = torch.full_like(block, torch.nan) if onto is None else onto
    group_rows(block, diagonal, left, right, out, onto=onto)
    error = float((out[:FEW].double() - want).norm() / want.norm())
    moved = [block, diagonal, left, right, out, *([] if onto is None else [onto])]
    told = clock.of(lambda: group_rows(block, diagonal, left, right, out, onto=onto), 0.1)
    return _row(f"{what}, {probes} x {groups} x {units}", tile_for(units, block.dtype), moved, error, told, copy)


def _weights(clock: Clock, dry: bool, copy: float) -> dict:
    from specxai.kernels.scaled_weights import scaled_weights, tile_for

    parts, positions, h, n = (2, 3, 5, 40) if dry else WEIGHTS
    draw = torch.Generator(clock.device).manual_seed(0)
    weights = list(torch.randn(parts, h, n, generator=draw, device=clock.device).bfloat16())
    factors = torch.randn(parts, positions, h, generator=draw, device=clock.device)
    out = torch.full((positions, h, n), torch.nan, dtype=torch.bfloat16, device=clock.device)
    scaled_weights(weights, factors, out)
    want = torch.einsum("iph,ihn->phn", factors[:, :FEW].double(), torch.stack(weights).double())
    error = float((out[:FEW].double() - want).norm() / want.norm())
    told = clock.of(lambda: scaled_weights(weights, factors, out), 0.1)
    return _row(f"{parts} scaled weights, {positions} x {h} x {n}", tile_for(n), [*weights, factors, out], error, told,
                copy)


def _row(what: str, tile: tuple, moved: list[Tensor], error: float, told: dict, copy: float) -> dict:
    """Of a kernel that reads and writes each of these once."""
    rate = sum(t.numel() * t.itemsize for t in moved) / told["seconds"]
    return {"what": what, "tile": repr(tile), "rate": rate, "of_roof": rate / copy, "error": error, **told}
