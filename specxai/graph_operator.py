"""Operators between steps of the linear graph: J, L, R, the bypass, and the two halves of a cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from specxai.backends.reference import Graph
from specxai.liveness import LiveCut, narrowest
from specxai.operators import Cut, LinearOperator


class GraphOperator(LinearOperator):
    """The linear map from the units of some steps to the units of others.

    sources, targets   steps of the program; their units are flattened and put one after the other
    held               steps whose value is kept at zero
    rows, columns      live units of targets and sources, None for all
    max_memory         bytes that one product may hold; wider blocks run in chunks of `block_size` columns

    `input_shape` and `output_shape` are those of the single source and target.
    """

    def __init__(self, graph: Graph, sources: Sequence[int], targets: Sequence[int], *, held: Sequence[int] = (),
                 dtype: torch.dtype, device: torch.device, max_memory: int,
                 columns: Tensor | None = None, rows: Tensor | None = None) -> None:
        self._graph, self._sources, self._targets, self._held = graph, list(sources), list(targets), list(held)
        self._columns, self._rows, self.max_memory = columns, rows, max_memory
        self._path = graph.between(self._sources, self._targets, self._held)
        inner = (self._units(self._targets), self._units(self._sources))
        shape = (inner[0] if rows is None else len(rows), inner[1] if columns is None else len(columns))
        # Three times the values: the result beside the block, and what a convolution unfolds.
        self.probe_bytes = 3 * dtype.itemsize * graph.peak_units(self._path, self._sources, self._targets)
        super().__init__(shape, dtype, device, block_size=max(1, max_memory // self.probe_bytes))

    @property
    def input_shape(self) -> torch.Size:
        return self._graph.shapes[self._sources[0]]

    @property
    def output_shape(self) -> torch.Size:
        return self._graph.shapes[self._targets[0]]

    @property
    def flops(self) -> int:
        """Operations of one column's product over dense nodes, a multiply-add counted as two."""
        return sum(self._graph.nodes[index].flops for index in self._path) + self.shape[0]

    def narrowest_cut(self) -> Cut | None:
        """The factorisation through the fewest live units, found as a minimum vertex cut of the graph."""
        found = self._cut
        if found is None or found.width >= min(self.shape):
            return None
        common = {"dtype": self.dtype, "device": self.device, "max_memory": self.max_memory}
        right = GraphOperator(self._graph, self._sources, found.steps, held=self._held, columns=self._columns,
                              rows=found.units, **common)
        left = GraphOperator(self._graph, found.steps, self._targets, held=self._held, columns=found.units,
                             rows=self._rows, **common)
        return Cut(found.width, left, right)

    @cached_property
    def _cut(self) -> LiveCut | None:
        if self._columns is not None or self._rows is not None:
            return None
        return narrowest(self._graph, self._path, self._sources, self._targets, self._held, self.dtype, self.device)

    def _matmat(self, X: Tensor) -> Tensor:
        with torch.no_grad():
            seeds = self._seeds(X, self._sources, self._columns)
            return self._collect(self._graph.forward(seeds, self._targets, held=self._held), self._rows)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        with torch.no_grad():
            seeds = self._seeds(Y, self._targets, self._rows)
            return self._collect(self._graph.reverse(seeds, self._sources, held=self._held), self._columns)

    def _units(self, steps: Sequence[int]) -> int:
        return sum(self._graph.shapes[s].numel() for s in steps)

    def _seeds(self, block: Tensor, steps: Sequence[int], live: Tensor | None) -> dict[int, Tensor]:
        """Columns (units, k) as one block (k, *S) a step."""
        if live is not None:
            block = block.new_zeros(self._units(steps), block.shape[1]).index_copy_(0, live, block)
        rows = block.T.split([self._graph.shapes[s].numel() for s in steps], dim=1)
        return {s: row.reshape(-1, *self._graph.shapes[s]) for s, row in zip(steps, rows, strict=True)}

    def _collect(self, blocks: list[Tensor], live: Tensor | None) -> Tensor:
        units = torch.cat([block.flatten(1) for block in blocks], 1)
        return (units if live is None else units.index_select(1, live)).T.contiguous()
