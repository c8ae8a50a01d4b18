"""Linear regions: same gates, same affine map; and how far the next gate is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specxai.backends.reference import push
from specxai.capture.program import Program, references
from specxai.graph import Graph
from specxai.rules import Gate


class Flip(float):
    """Distance t to the first gate on x + t·direction; `layer` and flat `unit` say which gate it is."""

    layer: str | None
    unit: int | None

    def __new__(cls, distance: float, layer: str | None = None, unit: int | None = None) -> Flip:
        flip = super().__new__(cls, distance)
        flip.layer, flip.unit = layer, unit
        return flip

    def __repr__(self) -> str:
        return f"Flip({float(self):.6g}, layer={self.layer!r}, unit={self.unit})"


def _piecewise(gates: list[tuple[str, Any]], crossing: bool) -> None:
    names = sorted({name for name, gate in gates if gate.pattern is None})
    if names:
        raise ValueError(f"linear regions need a piecewise-linear net with a rule for every gate, but "
                         f"{', '.join(names[:5])} is smooth, a product of values, a stopped gradient or without a rule "
                         f"({len(names)} such layers)")
    missing = sorted({name for name, gate in gates if gate.crossing is None})
    if crossing and missing:
        raise ValueError(f"the distance to a flip is not known for {', '.join(missing[:5])}: adaptive and 3-d "
                         "max-pooling and comparisons have no crossing rule; same_region still works")


def differing(ours: list[tuple[str, Any]], theirs: list[tuple[str, Any]]) -> dict[str, Tensor]:
    """{layer: flat indices of gates whose pattern differs}."""
    _piecewise(ours, crossing=False)
    found: dict[str, Tensor] = {}
    for (name, mine), (_, other) in zip(ours, theirs, strict=True):
        where = (mine.pattern != other.pattern).flatten().nonzero().flatten()
        if len(where):
            found[name] = torch.cat([found[name], where]) if name in found else where
    return found


def first_flip(graph: Graph, gates: list[tuple[str, Any]], direction: Tensor, x: Tensor, values: Sequence) -> Flip:
    """The smallest crossing time over all gates: one forward product carries the direction to every gate.

    values   of every step at x
    """
    _piecewise(gates, crossing=True)
    if direction.numel() != x.numel():
        raise ValueError(f"direction has shape {tuple(direction.shape)}, the input {tuple(x.shape)}")
    if not torch.isfinite(direction).all():
        raise ValueError("direction holds NaN or infinity; give a finite one")
    if not direction.any():
        raise ValueError("direction is zero: the line does not move")
    seed = direction.detach().reshape(1, *x.shape).to(x.device, graph.dtype)
    taps: dict[int, list[Tensor]] = {gate.input: [] for _, gate in gates}
    with torch.no_grad():
        push(graph, {graph.input: seed}, list(taps), taps=taps)
    best = Flip(math.inf)
    for name, gate in gates:
        moved = seed[0] if gate.input == graph.input else taps[gate.input][0][0] if taps[gate.input] else None
        if moved is None:
            continue
        times = gate.crossing(values[gate.input].detach().to(moved.dtype), moved).flatten()
        time, unit = times.min(0) if len(times) else (torch.tensor(math.inf), torch.tensor(0))
        if time.item() < best:
            best = Flip(time.item(), name, int(unit))
    return best


def decisions(program: Program, values: list) -> list[tuple[str, Gate]]:
    """Masks and indices computed from the input: constant on a linear region, so a gate's pattern each."""
    found = []
    for step in program.steps:
        value = values[step.index]
        if step.kind != "call" or not isinstance(value, Tensor) or value.is_floating_point():
            continue
        source = next((i for i in references((step.args, dict(step.kwargs))) if i in program.active), None)
        if source is not None:
            found.append((step.layer, Gate(source, value, None)))
    return found
