"""One matrix a position in place of a wide middle, from the column on that pays for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from specxai.backends.engine import Engine
from specxai.plan import Gather, Plan
from specxai.plan.chains import Chain, Wide
from specxai.plan.stages import Span

INDICES = (1 << 31) - 1  # numbers of a layer's weights that kernels reach
COPIES = 3  # of the matrices: as they are made, and as each direction reads them


class Composed:
    """The layer that stands for a chain of a plan's stages, made when it is first run."""

    def __init__(self, chain: Chain, plan: Plan, engine: Engine) -> None:
        self.chain, self._engine, self._lock = chain, engine, Lock()
        self._wide: Wide = chain.wide(plan.stages)
        self._units = self._wide.reads.numel() + self._wide.writes.numel()
        self._made: tuple[torch.dtype | None, Standing] | None = None

    def work(self, adjoint: bool, few_digits: bool) -> Standing:
        """The layer, in as few digits as the engine's rough products may have or in all.

        adjoint   it is asked for by an adjoint: its matrices lie as that reads them
        """
        engine = self._engine
        dtype = getattr(engine, "rough_matrices", None) if few_digits else None
        with self._lock:
            if self._made is None or self._made[0] is not dtype:
                self._made = None  # gone before the other comes
                layer = self._wide.layer(engine.empty(0, 1).device, adjoint, getattr(engine, "times", None), dtype)
                self._made = dtype, Standing(layer, engine)
            return self._made[1]

    def scratch(self, stride: int) -> int:
        """Numbers beside the blocks: what is set aside, and in fewer digits what is rounded."""
        return 2 * self._units * stride


class Standing:
    """Runs a layer that stands for several, and clears what they would.

    It reads when the last of them would run, and writes when the first would: rows that are free for others in between
    are set aside before they are cleared or written.
    """

    def __init__(self, layer: Gather, engine: Engine) -> None:
        place = layer.place
        self._fresh, self._zero, self._engine = place.fresh, place.zero, engine
        device = engine.empty(0, 1).device
        self._read, reads = _aside(layer.reads, layer.writes, place.fresh, device)
        self._written, writes = _aside(layer.writes, layer.reads, place.zero, device)
        self._forward = self._adjoint = engine.lower(replace(layer, reads=reads))
        if self._read is not None or self._written is not None:
            self._adjoint = engine.lower(replace(layer, writes=writes))

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        source = self._copied(inside, self._read)
        clear(outside, self._fresh)
        self._forward.forward(source, outside, probes, mode)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        source = self._copied(outside, self._written)
        clear(inside, self._zero)
        self._adjoint.adjoint(source, inside, probes, mode)

    def _copied(self, block: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            return block
        return torch.index_select(block, 0, rows, out=self._engine.empty(len(rows), block.shape[1]))


def _aside(rows: Tensor, others: Tensor, cleared: Sequence[Span], device: torch.device
           ) -> tuple[Tensor | None, Tensor]:
    """(the rows to set aside, on the device; their numbers there), (None, the rows) where no other is one of them."""
    live = rows[rows >= 0]
    clash = torch.isin(live, others[others >= 0]).any() or any(
        bool(((live >= start) & (live < stop)).any()) for start, stop in cleared)
    if not clash:
        return None, rows
    number = torch.full_like(rows, -1)
    number[rows >= 0] = torch.arange(len(live), dtype=rows.dtype, device="cpu")
    return live.long().to(device), number


def clear(arena: Tensor, spans: Sequence[Span]) -> None:
    for start, stop in spans:
        arena[start:stop].zero_()


def affordable(plan: Plan, itemsize: int, room: int) -> list[Chain]:
    """The chains whose matrices fit into so many bytes together, those that save most a byte first."""
    found = []
    reached = [chain for chain in plan.chains if chain.size <= INDICES]
    for chain in sorted(reached, key=lambda chain: chain.size / chain.saved):
        needed = matrix_bytes([chain], itemsize)
        if needed <= room:
            found.append(chain)
            room -= needed
    return found


def matrix_bytes(chains: Sequence[Chain], itemsize: int) -> int:
    return COPIES * itemsize * sum(chain.size for chain in chains)
