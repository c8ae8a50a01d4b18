"""Residual adds without a stage of their own: the last producer adds onto the rows of the other operand.

A sum reads `added`, reads `base` and writes rows of its own.  Where no one else reads `added`'s rows, and no one reads
`base`'s later, the sum takes over `base`'s rows, keeps own rows only for the units that `base` does not reach, and the
stage that makes `added` accumulates onto both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specxai import native
from specxai.backends.native.arena import Buffer
from specxai.backends.native.stages import GatherStage, LinkStage, Stage


@dataclass
class _Operand:
    """Units `to` of a sum take `rows`, times `scale`; `counts` says how many rows of each buffer."""

    to: Tensor
    rows: Tensor
    scale: Tensor | None
    counts: Tensor

    @property
    def buffers(self) -> list[int]:
        return self.counts.nonzero().flatten().tolist()


class Residuals:
    """Merges the sums among `stages`, in place.

    buffers   of all rows, in order of their start; their `size` and `born` change
    begin     (buffers + 1,) int32, where each one's rows begin
    read      rows that are read after the last stage; under their new names afterwards
    counts    how many rows of each buffer every stage reads, and the end; up to date afterwards
    shared    afterwards the buffers that more than one stage writes
    """

    def __init__(self, stages: list[Stage], buffers: list[Buffer], begin: Tensor, read: Tensor,
                 counts: list[Tensor]) -> None:
        self._stages, self._buffers, self._begin = stages, buffers, begin
        self.read, self.counts = read, counts
        self._alias = torch.arange(int(begin[-1]), dtype=torch.int32, device="cpu")
        self.shared: set[int] = set()
        merged = [k for k, stage in enumerate(stages)
                  if isinstance(stage, LinkStage) and len(stage.entries) == 2 and self._merge(k)]
        if merged:
            self._drop(merged)

    def _merge(self, k: int) -> bool:
        """Take the sum at stage k apart where that can be."""
        operands = [self._operand(*entry) for entry in self._stages[k].entries]
        if not all(self._one_to_one(operand) for operand in operands):
            return False
        base, added = sorted(operands, key=lambda operand: max(self._buffers[b].born for b in operand.buffers))
        maker = self._maker(added, k)
        if maker is None or not self._free(base, self._stages.index(maker), k):
            return False
        scales = []
        for operand in (base, added):
            if operand.scale is not None:  # its maker's weights must take it
                stage = self._maker(operand, k)
                scale = None if stage is None else stage.output_scale(operand.rows, operand.scale)
                if scale is None:
                    return False
                scales.append((stage, scale))
        for stage, scale in scales:
            stage.scale_outputs(scale)
        self._take_over(k, maker, base, added)
        return True

    def _operand(self, to: Tensor, rows: Tensor, scale: Tensor | None) -> _Operand:
        rows = native.map_rows(rows, self._alias)
        return _Operand(to, rows, scale, native.count_distinct(rows, self._begin))

    def _one_to_one(self, operand: _Operand) -> bool:
        to = int(native.count_distinct(operand.to, self._begin).sum())
        return 0 < len(operand.rows) == to == int(operand.counts.sum())

    def _maker(self, operand: _Operand, k: int) -> GatherStage | None:
        """The stage that makes all rows of the operand, for the sum at k alone."""
        if len(operand.buffers) != 1 or operand.buffers[0] in self.shared:
            return None
        at = operand.buffers[0]
        buffer = self._buffers[at]
        stage = self._stages[buffer.born] if buffer.born >= 0 else None
        if not isinstance(stage, GatherStage):
            return None
        alone = not any(int(counts[at]) for j, counts in enumerate(self.counts) if j != k)
        return stage if alone and len(operand.rows) == buffer.size else None

    def _free(self, base: _Operand, made: int, k: int) -> bool:
        """Do the base's rows exist when stage `made` runs, and does no one else read them from then on?

        They may be unfinished: where they are a sum themselves, a later stage adds its part after this one.
        """
        return all(self._buffers[b].born < made and
                   not any(int(counts[b]) for j, counts in enumerate(self.counts) if j >= made and j != k)
                   for b in base.buffers)

    def _take_over(self, k: int, maker: GatherStage, base: _Operand, added: _Operand) -> None:
        at = next(b for b, buffer in enumerate(self._buffers) if buffer.born == k)
        sum_, made = self._buffers[at], self._buffers[added.buffers[0]]
        own = torch.ones(sum_.size, dtype=torch.bool, device="cpu")
        own[base.to.long() - sum_.start] = False
        rows = torch.where(own, sum_.start - 1 + own.cumsum(0, dtype=torch.int32), 0)
        rows[base.to.long() - sum_.start] = base.rows
        self._alias[sum_.start:sum_.start + sum_.size] = rows
        self._alias[added.rows.long()] = rows[added.to.long() - sum_.start]
        sum_.size, sum_.born, made.size = int(own.sum()), made.born, 0
        maker.own_rows = sum_
        self.shared.update({at, *base.buffers})
        # Who reads the sum reads the base now, and the sum may be an operand of the next.
        self.counts[k] = torch.zeros_like(self.counts[k])
        for j, counts in enumerate(self.counts):
            if int(counts[at]):
                reads = self._stages[j].reads if j < len(self._stages) else self.read
                self.counts[j] = native.count_distinct(native.map_rows(reads, self._alias), self._begin)

    def _drop(self, merged: list[int]) -> None:
        kept = [k for k in range(len(self._stages)) if k not in merged]
        number = {old: new for new, old in enumerate(kept)}
        for buffer in self._buffers:
            buffer.born = buffer.last = number.get(buffer.born, -1)
        for stage in self._stages:
            stage.relocate(self._alias)
        self.read = native.map_rows(self.read, self._alias)
        self.counts = [self.counts[k] for k in (*kept, len(self._stages))]
        self._stages[:] = [self._stages[k] for k in kept]
