"""Matrices of positions in bfloat16, for rough products: torch multiplies them at twice the rate of float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specxai.plan import Gather


class InBfloat16:
    """Runs a layer whose groups are positions: rows gathered and rounded, one product a position, added up in float32
    inside.
    """

    kept = 0  # as its plan counts the matrices

    def __init__(self, stage: Gather) -> None:
        self._weight = stage.sites.weight[..., 0]  # (positions, outputs, inputs)
        self._reads, self._writes = (_Rows(rows, len(self._weight)) for rows in (stage.reads, stage.writes))
        self._adds, self._accumulates = stage.adds, stage.place.accumulate
        self.multiply_adds = self._weight.numel()

    def scratch(self, stride: int) -> int:
        return 2 * (self._reads.size + self._writes.size) * stride

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        self._writes.put(torch.bmm(self._weight, self._reads.of(inside, probes)), outside, self._adds)

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        self._reads.put(torch.bmm(self._weight.mT, self._writes.of(outside, probes)), inside, self._accumulates)


class _Rows:
    """The rows of a side, position by position; -1 for a dead unit."""

    def __init__(self, rows: Tensor, positions: int) -> None:
        rows = rows.flatten()
        self.positions, self.size = positions, len(rows)
        self._rows, self._dead = rows.long().clamp_min(0), rows < 0
        self._whole = not bool(self._dead.any())
        self._live = None if self._whole else (~self._dead).nonzero().flatten()

    def of(self, block: Tensor, probes: int) -> Tensor:
        """(positions, units, probes) in bfloat16."""
        found = block[:, :probes].index_select(0, self._rows).bfloat16()
        if not self._whole:
            found.masked_fill_(self._dead[:, None], 0)
        return found.view(self.positions, -1, probes)

    def put(self, made: Tensor, block: Tensor, add: bool) -> None:
        made, rows, probes = made.flatten(0, 1), self._rows, made.shape[2]
        if not self._whole:
            made, rows = made.index_select(0, self._live), rows.index_select(0, self._live)
        into = block[:, :probes]
        (into.index_add_ if add else into.index_copy_)(0, rows, made.float())
