"""From a graph to a plan: the passes one after the other, and what they find of a graph once and for all."""

from __future__ import annotations

from collections.abc import Sequence
from threading import RLock

import torch
from torch import Tensor

from specxai.graph import Graph
from specxai.graph.ends import check_ends
from specxai.native import cuda
from specxai.plan.draft import draft
from specxai.plan.layout import Plan, laid_out
from specxai.plan.liveness import CPU, Structure, ends, live_units, moved, structure_of
from specxai.plan.residual import merged

KEPT_UNITS = 1 << 20  # masks of more, and structures with factors, are found again by who asks after the plan is made


class Planner:
    """Plans for the maps between the steps of one graph; threads may share it.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(2, 1)).eval()
    >>> graph = specxai.linearize(net, torch.tensor([[1.0, -2.0]])).graph
    >>> plan = Planner(graph).plan([graph.input], [max(graph.nodes)], [])
    >>> plan.stages[0].reads.tolist()  # the second input meets a closed gate
    [[0, -1]]
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._lock = RLock()
        self._structures: dict[int, Structure] = {}
        self._there: dict[int, Structure] = {}  # those on the graph's device, where kernels find what lives
        self._last: tuple[tuple, dict[int, Tensor]] | None = None  # live units as last found: the cut and J's plan ask

    def plan(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
             columns: Tensor | None = None, rows: Tensor | None = None, taps: Sequence[int] = ()) -> Plan:
        """The plan of the map from the units of some steps to the units of others.

        held            steps whose value is kept at zero
        columns, rows   (units,) the only ones of the sources and targets, numbered one step after the other; None for
                        all
        taps            steps whose cotangents an adjoint passes on; those that lead to no target are left out

        Raises TypeError or ValueError as `check_ends` does.
        """
        graph = self.graph
        check_ends(graph, sources, targets, held, columns, rows, taps)
        columns, rows = (None if chosen is None else chosen.cpu() for chosen in (columns, rows))
        with self._lock:
            path = self._path(sources, targets, held)
            live = self._live(path, sources, targets, held, columns, rows)
            structures = {step: self._structures[step] for step in path}
            if sum(len(mask) for mask in live.values()) > KEPT_UNITS:
                self._last = None
                if any(structure.holds_factors for structure in structures.values()):
                    self._structures.clear()
        first = draft(graph, structures, path, live, sources, targets, rows, taps)
        return laid_out(merged(first), graph, sources, targets, columns, rows)

    def live_units(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                   columns: Tensor | None = None, rows: Tensor | None = None) -> dict[int, Tensor]:
        """The live units of the sources and of every step between: step -> mask (units,)."""
        check_ends(self.graph, sources, targets, held, columns, rows)
        columns, rows = (None if chosen is None else chosen.cpu() for chosen in (columns, rows))
        with self._lock:
            return self._live(self._path(sources, targets, held), sources, targets, held, columns, rows)

    def _live(self, path: list[int], sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
              columns: Tensor | None, rows: Tensor | None) -> dict[int, Tensor]:
        key = (tuple(sources), tuple(targets), tuple(held))
        whole = columns is None and rows is None
        if whole and self._last is not None and self._last[0] == key:
            return self._last[1]
        shapes = self.graph.shapes
        device, structures = self._where(path)
        live = live_units(self.graph, structures, path, ends(shapes, sources, columns, device),
                          ends(shapes, targets, rows, device))
        if device != CPU:  # rows are given out on the CPU: one copy of all masks
            masks = torch.cat(list(live.values())).cpu().split([len(mask) for mask in live.values()])
            live = dict(zip(live, masks, strict=True))
        if whole:
            self._last = key, live
        return live

    def _where(self, path: list[int]) -> tuple[torch.device, dict[int, Structure]]:
        """Where it is found what lives, the graph's device if that has compiled kernels, with the structures there."""
        device = self.graph.device
        if device == CPU or not cuda.runs_on(device):
            return CPU, self._structures
        self._there.update({step: moved(self._structures[step], device) for step in path if step not in self._there})
        return device, self._there

    def _path(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int]) -> list[int]:
        path = self.graph.between(sources, targets, held)
        for step in path:
            if step not in self._structures:
                self._structures[step] = structure_of(self.graph, step)
        return path
