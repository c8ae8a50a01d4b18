"""Wide middles: layers that act position by position, through more units than they have at their ends.

A transformer's feed-forward block leads the d units of a position through 4 d to d again.  At one input that is one
matrix (d, d) a position, other at each as the activations differ.  A product of k columns takes 16 k d² operations
through the middle and 2 k d² by the matrices, which take 8 d³ to make: after 0.6 d columns they are the cheaper way.
A gated block, two projections of which one is the other's factor, takes 16 k d² at 2.7 d units and pays from 0.4 d.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specxai._once import once
from specxai.graph.matrices import Times, position_matrices
from specxai.plan.draft import Draft
from specxai.plan.sites import Sites
from specxai.plan.stages import Gather, Link, Place, Stage, Sum
from specxai.plan.tables import count_distinct

SLOWER = 1.3  # a matrix that serves one position, beside one that serves all, at 64 columns
LINKS = 16  # from the first layers to the last, at the most
LEAST = 100_000  # multiply-adds that a column must spare


@dataclass(frozen=True)
class Part:
    """What one link of the sum in the middle carries: a first layer's outputs, times a factor, to the last's inputs.

    stage     number of the first layer
    channel   (h,) the first layer's output that each of the last layer's inputs takes
    factor    (positions, h); zero where a unit is dead
    """

    stage: int
    channel: Tensor
    factor: Tensor

    def read(self, weight: Tensor) -> Tensor:
        """(h, inputs) of the first layer's weight (outputs, inputs)."""
        channel = self.channel.to(weight.device)
        ordered = torch.equal(channel, torch.arange(len(weight), device=weight.device))
        return weight if ordered else weight[channel]


@dataclass(frozen=True, eq=False)
class Chain:
    """Consecutive stages of a plan that lead the units of a position to units of the same one.

    first, last   numbers of the stages, all of which the chain takes: layers that read one table of rows, sums and
                  copies of their results and of each other or none, and the layer that reads the last
    positions     those with a live unit at an end
    parts         see `Part`, at those positions
    direct        multiply-adds of a column through the middle, over live units
    composed      and by one matrix a position
    making        and of making the matrices, once
    size          their numbers

    >>> import specxai
    >>> from specxai.plan import Planner
    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)).eval()
    >>> graph = specxai.linearize(net, torch.linspace(0, 1, 512).reshape(1, 8, 64)).graph
    >>> plan = Planner(graph).plan([graph.input], [max(graph.nodes)], [])
    >>> chain, = plan.chains
    >>> len(plan.stages), chain.first, chain.last, chain.direct // 8, chain.composed // 8, chain.worth
    (3, 0, 2, 32768, 4096, 39)
    """

    first: int
    last: int
    positions: Tensor
    parts: tuple[Part, ...]
    direct: int
    composed: int
    making: int
    size: int

    @property
    def saved(self) -> float:
        """Multiply-adds of a column that are spared, those by matrices at the rate that they have."""
        return self.direct - SLOWER * self.composed

    @property
    def worth(self) -> int:
        """Columns from which the matrices have saved what they take to make."""
        return math.ceil(self.making / self.saved)

    def wide(self, stages: Sequence[Stage]) -> Wide:
        """What makes the layer that stands for the chain; `stages` are all of the plan's."""
        near, far = (stages[k] for k in (max(part.stage for part in self.parts), self.last))
        place = replace(far.place, zero=near.place.zero, accumulate=near.place.accumulate, scratch=0)
        reads, writes = (rows[self.positions].reshape(1, -1) for rows in (near.reads, far.writes))
        return Wide(self, reads, writes, far.own, place, _bare(far),
                    tuple(_bare(stages[part.stage]) for part in self.parts))


@dataclass(frozen=True, eq=False)
class Wide:
    """A chain with its ends: all that is needed of it once the stages are gone.

    reads, writes, own, place   as of the layer that stands for it
    far, near                   the last layer and that of each part, for their weights
    """

    chain: Chain
    reads: Tensor
    writes: Tensor
    own: int | None
    place: Place
    far: Gather
    near: tuple[Gather, ...]

    def layer(self, device: torch.device, transposed: bool = False, times: Times | None = None,
              dtype: torch.dtype | None = None) -> Gather:
        """One fully connected layer, whose groups are positions.

        transposed   its matrices lie as the adjoint reads them, where that takes no further work
        times        how they are multiplied; `matmul` with a dtype
        dtype        of the matrices, and of what is multiplied; None for that of the weights
        """
        transposed = transposed and len(self.near) == 1
        made = self.matrices(device, transposed, times, dtype)
        sites = Sites((made.mT if transposed else made)[..., None], (1,), (1,), None, True, True, own=True)
        return Gather(step=self.far.step, reads=self.reads, writes=self.writes, sites=sites, own=self.own,
                      place=self.place)

    def matrices(self, device: torch.device, transposed: bool, times: Times | None,
                 dtype: torch.dtype | None = None) -> Tensor:
        """W_far Σ diag(factor) W_near, (positions, outputs, inputs), or W_nearᵀ diag(factor) W_farᵀ of one part."""
        left = _weight(self.far).to(device)  # (outputs, h)
        right = [part.read(_weight(stage).to(device))
                 for stage, part in zip(self.near, self.chain.parts, strict=True)]
        if transposed:
            left, right = right[0].mT.contiguous(), [left.mT.contiguous()]
        factors = torch.stack([part.factor for part in self.chain.parts]).to(left)
        return position_matrices(left, right, factors, times, dtype)


def _weight(stage: Gather) -> Tensor:
    return stage.weight()[0, :, :, 0]


def _bare(stage: Gather) -> Gather:
    """The stage without its tables."""
    return replace(stage, reads=stage.reads[:0], writes=stage.writes[:0])


def chains_of(draft: Draft) -> tuple[Chain, ...]:
    """Those of a draft; a stage belongs to one at most: of two that share a layer, the one that saves more is taken.
    """
    finder = _Finder(draft)
    found = [chain for k in range(len(draft.stages)) if (chain := finder.ending_at(k)) is not None]
    taken: list[Chain] = []
    for chain in sorted(found, key=lambda chain: -chain.saved):
        if all(chain.last < other.first or other.last < chain.first for other in taken):
            taken.append(chain)
    return tuple(sorted(taken, key=lambda chain: chain.first))


class _Finder:
    """Looks for the stages in front of a layer that it alone reads, position by position."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft

    @once
    def tapped(self) -> set[int]:
        return {b for tap in self.draft.taps
                for b in count_distinct(tap.rows, self.draft.begin).nonzero().flatten().tolist()}

    def ending_at(self, k: int) -> Chain | None:
        """The chain whose last layer is stage k."""
        far = self.draft.stages[k]
        if not isinstance(far, Gather) or not _by_position(far) or far.reads.numel() * far.sites.outputs < LEAST:
            return None
        live = far.reads[far.reads >= 0]
        found = self._links(live, k)
        if found is None:
            return None
        links, passed = found
        makers = [maker for maker, _ in links]
        if not makers or passed != set(range(min(makers), k)):
            return None
        nears = [self.draft.stages[maker] for maker in makers]
        if not all(isinstance(near, Gather) and _by_position(near) and not near.adds and
                   len(near.reads) == len(far.reads) and torch.equal(near.reads, nears[0].reads) for near in nears):
            return None
        parts = [_part(maker, near.writes, far.reads, *link) for near, (maker, link) in zip(nears, links, strict=True)]
        return None if None in parts else self._counted(min(makers), k, _joined(parts))

    def _links(self, live: Tensor, k: int) -> tuple[list[tuple[int, Link]], set[int]] | None:
        """(what leads from layers to rows that stage k reads, through sums of sums: (number of the layer, link);
        the stages met), None where others read what lies between.
        """
        todo: list[Link] = [(live, live, None)]
        found, met = [], set()
        while todo:
            link = todo.pop(0)
            maker = self._maker(link[1], k)
            if maker is None or len(todo) + len(found) >= LINKS:
                return None
            met.add(maker)
            stage = self.draft.stages[maker]
            if not isinstance(stage, Sum):
                found.append((maker, link))
                continue
            inner = [one for one in stage.links() if len(one[0])]
            if any(len(to.unique()) < len(to) for to, _, _ in inner):
                return None
            todo += [behind for one in inner if len((behind := _behind(link, one))[0])]
        return found, met

    def _counted(self, first: int, k: int, parts: list[Part]) -> Chain | None:
        stages = self.draft.stages
        far = stages[k]
        ends_in, ends_out = ((rows >= 0).sum(1) for rows in (stages[parts[0].stage].reads, far.writes))
        positions = ((ends_in > 0) | (ends_out > 0)).nonzero().flatten()
        parts = [replace(part, factor=part.factor[positions]) for part in parts]
        middle = (far.reads >= 0).sum(1)
        direct = int((middle * ends_out).sum())
        for maker in {part.stage for part in parts}:
            direct += int(((stages[maker].writes >= 0).sum(1) * ends_in).sum())
        composed = int((ends_in * ends_out).sum())
        size = len(positions) * far.sites.outputs * stages[parts[0].stage].sites.inputs
        making = int((middle * ends_in * ends_out).sum())
        chain = Chain(first, k, positions, tuple(parts), direct, composed, making, size)
        return chain if chain.saved >= LEAST else None

    def _maker(self, rows: Tensor, last: int) -> int | None:
        """The stage that alone makes these rows, where stages up to `last` alone read them."""
        draft = self.draft
        found = count_distinct(rows, draft.begin).nonzero().flatten().tolist()
        if len(found) != 1 or found[0] in draft.shared or found[0] in self.tapped:
            return None
        born = draft.buffers[found[0]].born
        read_later = any(int(counts[found[0]]) for counts in draft.counts[last + 1:])
        return born if 0 <= born < last and not read_later else None


def _by_position(stage: Gather) -> bool:
    """Is it a fully connected layer, one matrix for all positions, that reads no row twice?"""
    sites = stage.sites
    return sites.geometry is None and sites.groups == 1 and sites.taps == 1 and not stage.repeats


def _part(maker: int, writes: Tensor, reads: Tensor, to: Tensor, rows: Tensor, scale: Tensor | None) -> Part | None:
    """The link from rows of `writes` to rows `to` of `reads`; None where it leads to another position, or where it is
    not channel by channel.
    """
    positions, width = reads.shape
    to, source = _places(reads, to), _places(writes, rows)
    if bool((to < 0).any()) or bool((source < 0).any()) or len(to.unique()) != len(to):
        return None
    (position, unit), (from_position, from_unit) = ((at // table.shape[1], at % table.shape[1])
                                                    for at, table in ((to, reads), (source, writes)))
    channel = torch.zeros(width, dtype=torch.int64, device="cpu")
    channel[unit] = from_unit
    if not torch.equal(from_position, position) or not torch.equal(channel[unit], from_unit):
        return None
    factor = torch.zeros(positions, width, dtype=torch.float64 if scale is None else scale.dtype, device="cpu")
    factor[position, unit] = 1 if scale is None else scale
    return Part(maker, channel, factor)


def _behind(link: Link, inner: Link) -> Link:
    """The link through two sums, of which the inner one makes the rows that the other reads."""
    (to, rows, scale), (made, source, factor) = link, inner
    at = _places(made, rows)
    some = at >= 0
    to, at = to[some], at[some]
    parts = [part for part in (None if scale is None else scale[some], None if factor is None else factor[at])
             if part is not None]
    return to, source[at], math.prod(parts[1:], start=parts[0]) if parts else None


def _joined(parts: list[Part]) -> list[Part]:
    """One part for all links from a layer by the same channels."""
    joined: list[Part] = []
    for part in parts:
        same = next((at for at, other in enumerate(joined)
                     if other.stage == part.stage and torch.equal(other.channel, part.channel)), None)
        if same is None:
            joined.append(part)
        else:
            joined[same] = replace(part, factor=joined[same].factor + part.factor)
    return joined


def _places(table: Tensor, rows: Tensor) -> Tensor:
    """Where each row lies in the flat table, whose rows are all different; -1 for nowhere."""
    flat = table.flatten()
    live = (flat >= 0).nonzero().flatten()
    low, size = int(flat[live].min()), int(flat.max()) + 1
    at = torch.full((size - low + 1,), -1, dtype=torch.int64, device="cpu")  # the last for what lies outside
    at[(flat[live] - low).long()] = live
    return at[torch.where((rows >= low) & (rows < size), rows - low, size - low).long()]
