"""Residual adds without a stage of their own: the last producer adds onto the rows of the other operand.

A sum reads `added`, reads `base` and writes rows of its own.  Where no one else reads `added`'s rows, and no one reads
`base`'s later, the sum takes over `base`'s rows, keeps own rows only for the units that `base` does not reach, and the
stage that makes `added` accumulates onto both.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specxai.plan.draft import Draft
from specxai.plan.stages import Gather, Sum, Tap, output_scale
from specxai.plan.tables import count_distinct, map_rows


def merged(draft: Draft) -> Draft:
    """The draft without the sums that a producer can take."""
    merger = _Merger(draft)
    gone = [k for k, stage in enumerate(draft.stages)
            if isinstance(stage, Sum) and len(stage.sizes) == 2 and merger.merge(k)]
    return merger.without(gone) if gone else draft


@dataclass(frozen=True)
class _Operand:
    """Rows `to` of a sum take `rows`, times `scale`; `counts` says how many rows of each buffer."""

    to: Tensor
    rows: Tensor
    scale: Tensor | None
    counts: Tensor

    @property
    def buffers(self) -> list[int]:
        return self.counts.nonzero().flatten().tolist()


class _Merger:
    """A draft while its sums are taken apart: `alias` says where a row of the draft lies now."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.stages, self.buffers, self.counts = list(draft.stages), list(draft.buffers), list(draft.counts)
        self.alias = torch.arange(int(draft.begin[-1]), dtype=torch.int32, device="cpu")
        self.shared = set(draft.shared)
        self.tapped = {b for tap in draft.taps
                       for b in count_distinct(tap.rows, draft.begin).nonzero().flatten().tolist()}

    def merge(self, k: int) -> bool:
        """Take the sum at stage k apart where that can be."""
        operands = [self.operand(*link) for link in self.draft.stages[k].links()]
        if not all(self.one_to_one(operand) for operand in operands):
            return False
        base, added = sorted(operands, key=lambda operand: max(self.buffers[b].born for b in operand.buffers))
        maker = self.maker(added, k)
        if maker is None or not self.free(base, maker, k):
            return False
        scales = []
        for operand in (base, added):
            if operand.scale is not None:  # its maker's weights must take it
                if not self.tapped.isdisjoint(operand.buffers):  # whose rows would hold more than the value
                    return False
                at = self.maker(operand, k)
                scale = None if at is None else output_scale(self.stages[at], operand.rows, operand.scale)
                if scale is None:
                    return False
                scales.append((at, scale))
        for at, scale in scales:
            self.stages[at] = replace(self.stages[at], output_scale=scale)
        self.take_over(k, maker, base, added)
        return True

    def operand(self, to: Tensor, rows: Tensor, scale: Tensor | None) -> _Operand:
        rows = map_rows(rows, self.alias)
        return _Operand(to, rows, scale, count_distinct(rows, self.draft.begin))

    def one_to_one(self, operand: _Operand) -> bool:
        to = int(count_distinct(operand.to, self.draft.begin).sum())
        return 0 < len(operand.rows) == to == int(operand.counts.sum())

    def maker(self, operand: _Operand, k: int) -> int | None:
        """The gather that makes all rows of the operand, for the sum at k alone."""
        if len(operand.buffers) != 1 or operand.buffers[0] in self.shared:
            return None
        at = operand.buffers[0]
        buffer = self.buffers[at]
        if buffer.born < 0 or not isinstance(self.stages[buffer.born], Gather):
            return None
        alone = not any(int(counts[at]) for j, counts in enumerate(self.counts) if j != k)
        return buffer.born if alone and len(operand.rows) == buffer.size else None

    def free(self, base: _Operand, made: int, k: int) -> bool:
        """Do the base's rows exist when stage `made` runs, and does no one else read them from then on?

        They may be unfinished: where they are a sum themselves, a later stage adds its part after this one.
        """
        return all(self.buffers[b].born < made and
                   not any(int(counts[b]) for j, counts in enumerate(self.counts) if j >= made and j != k)
                   for b in base.buffers)

    def take_over(self, k: int, maker: int, base: _Operand, added: _Operand) -> None:
        at = next(b for b, buffer in enumerate(self.buffers) if buffer.born == k)
        sum_ = self.buffers[at]
        own = torch.ones(sum_.size, dtype=torch.bool, device="cpu")
        own[base.to.long() - sum_.start] = False
        rows = torch.where(own, sum_.start - 1 + own.cumsum(0, dtype=torch.int32), 0)
        rows[base.to.long() - sum_.start] = base.rows
        self.alias[sum_.start:sum_.start + sum_.size] = rows
        self.alias[added.rows.long()] = rows[added.to.long() - sum_.start]
        self.buffers[at] = replace(sum_, size=int(own.sum()), born=maker)
        self.buffers[added.buffers[0]] = replace(self.buffers[added.buffers[0]], size=0)
        self.stages[maker] = replace(self.stages[maker], own=at)
        self.shared.update({at, *base.buffers})
        # Who reads the sum reads the base now, and the sum may be an operand of the next.
        self.counts[k] = torch.zeros_like(self.counts[k])
        for j, counts in enumerate(self.counts):
            if int(counts[at]):
                reads = self.stages[j].reads if j < len(self.stages) else self.draft.read
                self.counts[j] = count_distinct(map_rows(reads, self.alias), self.draft.begin)

    def of_tap(self, tap: Tap, kept: list[int]) -> Tap:
        return replace(tap, before=bisect_left(kept, tap.before), rows=map_rows(tap.rows, self.alias))

    def without(self, gone: list[int]) -> Draft:
        kept = [k for k in range(len(self.stages)) if k not in gone]
        number = {old: new for new, old in enumerate(kept)}
        buffers = tuple(replace(b, born=number.get(b.born, -1), last=number.get(b.born, -1)) for b in self.buffers)
        return replace(
            self.draft, stages=tuple(self.stages[k].moved(self.alias) for k in kept), buffers=buffers,
            read=map_rows(self.draft.read, self.alias), shared=frozenset(self.shared),
            taps=tuple(self.of_tap(tap, kept) for tap in self.draft.taps),
            counts=tuple(self.counts[k] for k in (*kept, len(self.stages))))
