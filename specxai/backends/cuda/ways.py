"""The ways to run a stage that differ in time alone: which units are gathered, and how the product is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specxai.backends.cuda.tuned import BEYOND, Choices

if TYPE_CHECKING:
    from specxai.kernels.gather_gemm import Gathering
    from specxai.kernels.packed_gemm import Packed
    from specxai.kernels.tile import Tile


@dataclass(frozen=True)
class Way:
    """Tables and how a product with them is cut.

    cost   by counts; ways are compared by it
    """

    tables: Gathering | Packed
    gathers: str
    tile: Tile
    parts: int | None
    cost: float

    @property
    def name(self) -> str:
        """In files.

        >>> from specxai.kernels.tile import Tile
        >>> Way(None, "packed", Tile(64, 8, False, 4, 3), 2, 0.0).name
        'packed, 64 outputs x 8 probes, 4 warps, 3 stages, 2 parts'
        """
        tile = self.tile
        axes = f"{tile.probes} probes x {tile.out} outputs" if tile.probes_first else \
            f"{tile.out} outputs x {tile.probes} probes"
        cut = "" if self.parts is None else f", {self.parts} parts"
        return f"{self.gathers}, {axes}, {tile.warps} warps, {tile.stages} stages{cut}"

    def apart(self) -> Way:
        """The same for a trial, after which nothing of it is kept."""
        return replace(self, tables=self.tables.apart())

    def run(self, block: Tensor, out: Tensor, accumulate: bool, precision: str) -> None:
        if self.gathers == "packed":
            from specxai.kernels.packed_gemm import packed_gemm as kernel
        else:
            from specxai.kernels.gather_gemm import gather_gemm as kernel
        kernel(self.tables, block, out, accumulate, precision, self.tile, self.parts)


def gather_ways(tables: Gathering, other: Callable[[str], Gathering], probes: int, precision: str) -> Iterator[Way]:
    """First the counted choice, then other tiles of it, then those of other dataflows where counts allow that.

    other   makes the tables that gather what it is given
    """
    yield from _tiles(tables, probes, precision)
    for rest in tables.counts.within(BEYOND)[1:]:
        yield from _tiles(other(rest), probes, precision)


def _tiles(tables: Gathering, probes: int, precision: str) -> Iterator[Way]:
    from specxai.kernels.gather_gemm import counted_tiles

    for tile, cost in counted_tiles(tables, probes, precision):
        yield Way(tables, tables.gathers, tile, None, cost)


def packed_ways(layer: Packed, probes: int, precision: str) -> Iterator[Way]:
    """First the counted choice, then others."""
    from specxai.kernels.packed_gemm import counted_cuts

    for tile, parts, cost in counted_cuts(layer, probes, precision):
        yield Way(layer, "packed", tile, parts, cost)


Ways = Callable[[int, str], Iterator[Way]]  # (probes, precision) -> the counted way, then others


class Chosen:
    """One direction of a stage, run in the way that `choices` have for it.

    stage   what the choice depends on, beside probes and precision
    """

    def __init__(self, choices: Choices, stage: str) -> None:
        self._choices, self._stage = choices, stage
        self._kept: dict[tuple[int, str], Way] = {}

    def run(self, ways: Ways, block: Tensor, out: Tensor, accumulate: bool, precision: str) -> None:
        """The first pass of a width decides; later ones, captured or not, run alike."""
        width = block.shape[1], precision
        way = self._kept.get(width)
        if way is None:
            way = self._kept[width] = self._first(ways, width, block, out, accumulate)
        else:
            way.run(block, out, accumulate, precision)

    def _first(self, ways: Ways, width: tuple[int, str], block: Tensor, out: Tensor, accumulate: bool) -> Way:
        probes, precision = width
        key = f"{self._stage}, {probes} probes, {precision}"
        counted = next(ways(*width))
        scratch: list[Tensor] = []

        def trial(way: Way) -> None:
            # Never the real rows, onto which a stage may add what it must add once.
            if not scratch:
                scratch.append(out.new_empty(way.tables.written, max(out.stride(0), probes))[:, :probes])
            way.apart().run(block, scratch[0], accumulate, precision)

        try:
            way = counted if counted.cost == 0 else self._choices.choose(key, ways(*width), trial)
        except torch.OutOfMemoryError:  # beside the arena: without a trial there may be enough
            way = counted
        scratch.clear()
        try:
            way.run(block, out, accumulate, precision)
        except Exception as error:  # of a launch, before anything was written
            if way.name == counted.name:
                raise
            self._choices.refuse(key, way, error)
            way = counted
            way.run(block, out, accumulate, precision)
        return way


def described(kind: str, back: bool, inside: Tensor, outside: Tensor, weight: tuple[int, ...]) -> str:
    """What a choice depends on: live units to a power of two, so that inputs of one network share theirs.

    Args:
        inside, outside: (positions, units) rows that are read and written, -1 for a dead unit.
        weight: (groups, outputs, inputs, taps) of the stage.

    >>> rows = torch.tensor([[0, 1, -1, 2], [3, -1, -1, 4]])
    >>> described("gather", False, rows, rows, (1, 4, 4, 1))
    'gather, forward, 1 groups of 4 outputs 4 inputs 1 taps, 2 to 2 positions, about 4 to 4 live'
    """
    groups, outputs, inputs, taps = weight
    live = (near_power(int((rows >= 0).sum())) for rows in (inside, outside))
    return (f"{kind}, {'adjoint' if back else 'forward'}, {groups} groups of {outputs} outputs {inputs} inputs {taps} "
            f"taps, {len(inside)} to {len(outside)} positions, about {' to '.join(map(str, live))} live")


def near_power(count: int) -> int:
    """The power of two that is nearest by ratio, 1 for none.

    >>> [near_power(n) for n in (0, 1, 5, 6, 1000)]
    [1, 1, 4, 8, 1024]
    """
    return 1 << round(math.log2(max(1, count)))
