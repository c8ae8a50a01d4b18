"""One matrix a position in place of a wide middle, from the column on that pays for it."""

from __future__ import annotations

from collections.abc import Sequence

from specxai._once import once
from specxai.backends.engine import Engine, Executable
from specxai.plan import Plan
from specxai.plan.chains import Chain, Wide

COPIES = 3  # of the matrices: as they are made, and as each direction reads them


class Composed:
    """The layer that stands for a chain of a plan's stages, made when it is first run.

    adjoint_only   no other product will come
    """

    def __init__(self, chain: Chain, plan: Plan, engine: Engine, adjoint_only: bool = False) -> None:
        self.chain, self._engine, self._adjoint_only = chain, engine, adjoint_only
        self._wide: Wide | None = chain.wide(plan.stages)
        self.place = self._wide.place

    @once
    def work(self) -> Executable:
        layer = self._wide.layer(self._engine.empty(0, 1).device, self._adjoint_only)
        self._wide = None
        return self._engine.lower(layer)


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
