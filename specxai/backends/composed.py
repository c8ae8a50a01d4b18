"""One matrix a position in place of a wide middle, from the column on that pays for it."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

from specxai.backends.engine import Engine, Executable
from specxai.plan import Plan
from specxai.plan.chains import Chain, Wide

COPIES = 3  # of the matrices: as they are made, and as each direction reads them


class Composed:
    """The layer that stands for a chain of a plan's stages, made when it is first run.

    rough   in fewer digits, for rough products alone
    """

    def __init__(self, chain: Chain, plan: Plan, engine: Engine) -> None:
        self.chain, self._engine, self._lock = chain, engine, Lock()
        self._wide: Wide | None = chain.wide(plan.stages)
        self.size = self._wide.reads.numel() + self._wide.writes.numel()
        self._made: Executable | None = None
        self.place, self.rough = self._wide.place, False

    def work(self, adjoint: bool) -> Executable:
        """`adjoint`: it is for an adjoint that it is asked for, as whose matrices lie from the first."""
        with self._lock:
            if self._made is None:
                engine, wide = self._engine, self._wide
                if self.rough:
                    self._made = engine.lower_rough(wide, adjoint)
                else:
                    device, times = engine.empty(0, 1).device, getattr(engine, "times", None)
                    self._made = engine.lower(wide.layer(device, adjoint, times))
                self._wide = None
            return self._made

    def scratch(self, stride: int) -> int:
        """Numbers beside the blocks, of which rough products hold some in half the size."""
        return 2 * self.size * stride if self.rough else 0


def affordable(plan: Plan, itemsize: int, room: int) -> list[Chain]:
    """The chains whose matrices fit into so many bytes together, those that save most a byte first."""
    found = []
    for chain in sorted(plan.chains, key=lambda chain: chain.size / chain.saved):
        needed = matrix_bytes([chain], itemsize)
        if needed <= room:
            found.append(chain)
            room -= needed
    return found


def matrix_bytes(chains: Sequence[Chain], itemsize: int) -> int:
    return COPIES * itemsize * sum(chain.size for chain in chains)
