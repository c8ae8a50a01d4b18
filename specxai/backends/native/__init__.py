"""The native backend: compiled kernels over live units only.

A plan is made for each operator; what it has no stage for runs as in the reference, between the rows around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import RLock

import torch
from torch import Tensor

from specxai import native
from specxai.backends.native.live import Structure, ends, live_units
from specxai.backends.native.plan import Plan
from specxai.backends.native.sites import sites_of
from specxai.backends.native.units import Join, pick_of
from specxai.backends.reference import Graph

KEPT_UNITS = 1 << 20  # masks of more are found again by whoever asks once the plan is made


def eligible(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[bool, str]:
    """(can the backend run here, why or why not)."""
    ok, reason = native.available()
    if not ok:
        return False, reason
    if torch.device(device).type != "cpu":
        return False, f"the compiled kernels run on the CPU, the model is on {device}"
    if dtype not in (torch.float32, torch.float64):
        return False, f"the compiled kernels take float32 and float64, the model is {dtype}"
    return True, f"{native.simd_level()} kernels"


class NativeGraph(Graph):
    """`Graph` whose operators run plans over live units."""

    def __init__(self, nodes, shapes, input, dtype: torch.dtype, plan_from: int = 0) -> None:
        super().__init__(nodes, shapes, input, dtype)
        self.plan_from = plan_from
        self._lock = RLock()  # of all that is kept here, but for the pool, whose operations are whole by themselves
        self._structures: dict[int, Structure] = {}
        self._pool: list[Tensor] = []  # arenas that no product is using
        self._last: tuple[tuple, dict[int, Tensor]] | None = None  # live units as last found: the cut and J's plan ask

    def products(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                 columns: Tensor | None = None, rows: Tensor | None = None) -> Plan:
        """The plan of the map from the units of some steps to the units of others."""
        with self._lock:
            path = self._path(sources, targets, held)
            live = self._live(path, sources, targets, held, columns, rows)
            if sum(len(mask) for mask in live.values()) > KEPT_UNITS:
                self._last = None
            return Plan(self.nodes, self.shapes, self._structures, path, live, sources, targets, self.dtype, columns,
                        rows, self._pool)

    def live_units(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                   device: torch.device) -> dict[int, Tensor]:
        with self._lock:
            return self._live(self._path(sources, targets, held), sources, targets, held, None, None)

    def _live(self, path: list[int], sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
              columns: Tensor | None, rows: Tensor | None) -> dict[int, Tensor]:
        key = (tuple(sources), tuple(targets), tuple(held))
        whole = columns is None and rows is None
        if whole and self._last is not None and self._last[0] == key:
            return self._last[1]
        live = live_units(self.nodes, self.shapes, self._structures, path, ends(self.shapes, sources, columns),
                          ends(self.shapes, targets, rows))
        if whole:
            self._last = key, live
        return live

    def _path(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int]) -> list[int]:
        path = self.between(sources, targets, held)
        for step in path:
            if step not in self._structures:
                self._structures[step] = self._structure(step)
        return path

    def _structure(self, step: int) -> Structure:
        node, shape = self.nodes[step], self.shapes[step]
        sites = None
        if len(node.terms) == 1:
            sites = sites_of(node, self.shapes[node.terms[0].input], shape)
        if sites is not None:
            return Structure(sites, (None,) * len(node.terms))
        if node.joined is not None:
            sizes = tuple(self.shapes[t.input].numel() for t in node.terms)
            return Structure(None, (None,) * len(node.terms), Join.of_units(node.joined(), sizes))
        return Structure(None, tuple(pick_of(t, self.shapes[t.input], shape, self.dtype) for t in node.terms))
