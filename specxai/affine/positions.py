"""Operators at chosen positions along the token axis of a value (1, T, d), and at sums over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specxai._blocks import as_integer
from specxai.affine.operator import LocalOperator
from specxai.backends import Backend
from specxai.backends.engine import Passed
from specxai.capture.program import Program
from specxai.errors import LayerError
from specxai.operators import Cut

__all__ = ["PositionOperator", "Positions", "Side", "Summed", "summed"]


@dataclass(frozen=True)
class Summed:
    """The sum over some positions of the token axis, None for all; see `summed`."""

    positions: int | slice | Sequence[int] | Tensor | None = None


Positions = int | slice | Sequence[int] | Tensor | str | Summed | None


def summed(positions: int | slice | Sequence[int] | Tensor | None = None) -> Summed:
    """The sum over positions as one block of d units, for `Local.operator`; over all of them where none are given.

    At a target the products are sums over the positions; at a source the same d numbers are put at each of them.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()).eval()
    >>> local = specxai.linearize(net, torch.ones(1, 5, 2))
    >>> local.operator(target_positions=specxai.summed(slice(1, None)), source_positions="sum").shape
    (3, 2)
    """
    return Summed(positions)


@dataclass(frozen=True)
class Side:
    """The units of a step at one end of an operator.

    units    of the step's flat value, None for all
    shape    that they have: the step's own, (P, *rest) at P positions, `rest` at a single one or a sum
    copies   positions that are summed, 1 for no sum
    """

    step: int
    units: Tensor | None
    shape: torch.Size
    copies: int = 1

    @classmethod
    def of(cls, step: int, shape: torch.Size, positions: Positions, name: str) -> Side:
        """Raises TypeError or ValueError for positions that the layer `name` does not have."""
        if positions is None:
            return cls(step, None, shape)
        if isinstance(positions, str):
            if positions != "sum":
                raise ValueError(f"positions={positions!r}: give indices along the token axis, a slice, 'sum', or "
                                 "specxai.summed(indices)")
            positions = Summed()
        if len(shape) < 3:
            raise ValueError(f"{name} has shape {tuple(shape)}, and positions are those of axis 1 of (1, T, d); leave "
                             "them out")
        adds = isinstance(positions, Summed)
        found = _indices(positions.positions if adds else positions, shape[1], name)
        rest, size = shape[2:], math.prod(shape[2:])
        units = (torch.tensor(found)[:, None] * size + torch.arange(size)).flatten()
        if adds:
            return cls(step, units, rest, len(found))
        return cls(step, units, rest if as_integer(positions) is not None else torch.Size((len(found), *rest)))

    def spread(self, block: Tensor) -> Tensor:
        """(units, k) from (n, k): a sum's block at each of its positions."""
        return block if self.copies == 1 else block.repeat(self.copies, 1)

    def added(self, block: Tensor) -> Tensor:
        """(n, k) from (units, k): the sum over positions."""
        return block if self.copies == 1 else block.reshape(self.copies, -1, block.shape[1]).sum(0)


def _indices(positions, count: int, name: str) -> list[int]:
    if positions is None:
        positions = slice(None)
    if isinstance(positions, slice):
        found = list(range(count))[positions]
    else:
        if isinstance(positions, Tensor):
            positions = positions.nonzero().flatten() if positions.dtype is torch.bool else positions
            positions = positions.tolist()
        several = positions if isinstance(positions, (Sequence, range)) else [positions]
        found = [as_integer(one) for one in several]
        if None in found:
            raise TypeError(f"positions={positions!r}: give integers along the token axis, a slice, 'sum', or "
                            "specxai.summed(indices)")
        wrong = next((one for one in found if not -count <= one < count), None)
        if wrong is not None:
            raise ValueError(f"position {wrong} is out of range: {name} has {count} positions, 0 to {count - 1} or "
                             f"{-count} to -1")
        found = [one % count for one in found]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"positions={positions!r} of {name}, which has {count}: give at least one, and each once")
    return found


End = str | nn.Module | int | Sequence[int] | None  # a layer, steps of the program, or the input or output


def between(backend: Backend, program: Program, source: tuple[End, Positions], target: tuple[End, Positions],
            held: Sequence[End] = (), taps: Sequence[End] = (), **settings) -> LocalOperator:
    """The operator from a layer to another, each with the positions that are asked for; see `Local.operator`.

    Raises LayerError, TypeError or ValueError where there is no such layer, path or position.
    """
    graph = backend.graph
    starts, first = _steps(program, source[0], program.input, "the input")
    stops, last = _steps(program, target[0], program.output, "the output")
    held, taps = ([ends] if isinstance(ends, (str, nn.Module)) else ends for ends in (held, taps))
    kept = [step for end in held for step in _steps(program, end, program.input, "")[0]]
    settings["taps"] = [step for end in taps for step in _steps(program, end, program.input, "")[0]]
    by_name = any(isinstance(end, (str, nn.Module)) for end, _ in (source, target))
    if by_name and starts != stops and not graph.between(starts, stops, kept):
        raise LayerError(f"nothing leads from {first} to {last}: the source must come before the target, and may not "
                         "be held")
    if source[1] is None and target[1] is None:
        return LocalOperator(backend, starts, stops, held=kept, **settings)
    if len(starts) + len(stops) > 2:
        raise ValueError("positions belong to one source and one target; leave them out, or name one layer each")
    return PositionOperator(backend, Side.of(starts[0], graph.shapes[starts[0]], source[1], first),
                            Side.of(stops[0], graph.shapes[stops[0]], target[1], last), held=kept, **settings)


def _steps(program: Program, end: End, alone: int, otherwise: str) -> tuple[list[int], str]:
    """(steps, what to call them)."""
    if end is None:
        return [alone], otherwise
    if isinstance(end, int):
        return [end], f"step {end}"
    if isinstance(end, (list, tuple)):
        return list(end), f"steps {list(end)}"
    name, step = program.layer(end, first=True)
    return [step], f"layer {name!r}"


class PositionOperator(LocalOperator):
    """A `LocalOperator` between chosen units of two steps, or sums of them.

    source, target   the two ends; `input_shape` and `output_shape` are theirs
    """

    def __init__(self, backend, source: Side, target: Side, *, held: Sequence[int] = (), **settings) -> None:
        def units(side: Side) -> Tensor | None:
            return None if side.units is None else side.units.to(backend.graph.device)

        super().__init__(backend, [source.step], [target.step], held=held, columns=units(source), rows=units(target),
                         **settings)
        self._from, self._to = source, target
        self.shape = (self.shape[0] // target.copies, self.shape[1] // source.copies)

    @property
    def input_shape(self) -> torch.Size:
        return self._from.shape

    @property
    def output_shape(self) -> torch.Size:
        return self._to.shape

    def narrowest_cut(self) -> Cut | None:
        """As of a `LocalOperator`; None between sums over positions, whose factors would be no products of these."""
        return super().narrowest_cut() if max(self._from.copies, self._to.copies) == 1 else None

    def _bytes(self, products, columns: int) -> int:
        spread = sum(size * side.copies for size, side in zip(self.shape, (self._to, self._from), strict=True)
                     if side.copies > 1)
        return super()._bytes(products, columns) + spread * columns * self.dtype.itemsize

    def _run(self, product: str, block: Tensor, rough: bool, *passed: Passed) -> Tensor:
        given, wanted = (self._from, self._to) if product == "matmat" else (self._to, self._from)
        return wanted.added(super()._run(product, given.spread(block), rough, *passed))
