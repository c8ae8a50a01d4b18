"""How a product is cut into programs: by size, what compiles without spills and copies sixteen bytes at a time
(tests/native/test_triton_gemm.py), not measured on a card yet; and what else is worth a trial there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import triton

PANELS = (16, 32, 64, 128)  # outputs of a program


SUMS = 512  # numbers of a program's sums of rows, probes times rows
MOST_PROBES = 64  # of such a program


@dataclass(frozen=True)
class Tile:
    """Sizes of a program's tile and how it runs; powers of two.

    probes_first   probes are the first axis of the product, which tensor cores fill up to 16 or 64, outputs the second
    """

    out: int
    probes: int
    probes_first: bool
    warps: int
    stages: int


def tile_for(outputs: int, probes: int, precision: str) -> Tile:
    """For so many outputs of a group, and probes."""
    out = min(PANELS[-1], max(PANELS[0], triton.next_power_of_2(outputs)))
    few = probes <= 32
    if precision == "fp64":  # larger ones spill
        return Tile(16, _few(probes), False, 8, 3) if few else Tile(min(out, 32), 64, True, 2 if out == 16 else 4, 3)
    out = min(out, 64) if few or precision == "fp32" else out
    if few:
        return Tile(out, _few(probes), False, 4, 3)
    # Copies wait for rows, which wait for chunks: of four stages one is theirs, and seven would let two be under way.
    return Tile(out, 64, out < 64, 4 if out < 128 else 8, 4)


def tiles_for(outputs: int, probes: int, precision: str) -> list[Tile]:
    """The tile of `tile_for`, and others that a card may run faster: more or fewer outputs, a stage more or less, the
    axes of the product the other way round.

    >>> [(tile.out, tile.stages, tile.probes_first) for tile in tiles_for(64, 64, "tf32x3")]
    [(64, 4, False), (32, 4, True), (64, 3, False), (64, 4, True)]
    """
    chosen = tile_for(outputs, probes, precision)
    if precision == "fp64":  # larger ones spill
        return [chosen]
    most = min(max(PANELS[0], triton.next_power_of_2(outputs)), 64 if probes <= 32 or precision == "fp32" else 128)
    sizes = [out for out in (chosen.out // 2, chosen.out * 2) if PANELS[0] <= out <= most]
    others = [tile_for(out, probes, precision) for out in sizes]
    others.append(replace(chosen, stages=7 - chosen.stages))  # three or four
    if chosen.probes >= 16:  # of the first axis an instruction takes no fewer
        others.append(replace(chosen, probes_first=not chosen.probes_first))
    return [chosen, *others]


def sums_for(probes: int) -> tuple[int, int]:
    """(rows, probes) of a program that sums rows of so many probes.

    >>> sums_for(5), sums_for(200)
    ((64, 8), (8, 64))
    """
    few = min(MOST_PROBES, triton.next_power_of_2(probes))
    return SUMS // few, few


def _few(probes: int) -> int:
    return max(8, triton.next_power_of_2(probes))


def filled(outputs: int) -> int:
    """The width of a row of so many weights in memory: whole panels of 128, or one of a power of two.

    >>> filled(5), filled(40), filled(300)
    (16, 64, 384)
    """
    panel = min(PANELS[-1], max(PANELS[0], triton.next_power_of_2(outputs)))
    return panel * -(-outputs // panel)
