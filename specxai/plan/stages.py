"""The stages of a plan, as data: what each reads and writes, and by which linear map.

A block of k probes is a matrix [row][probe].  A stage reads some rows and writes others; in the adjoint the same rows
hold cotangents, and what was read is written.  Stages are frozen: a pass makes new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specxai.plan.rows import Rows, select
from specxai.plan.sites import Sites
from specxai.plan.tables import map_rows
from specxai.rules import LinearNode, Term

Span = tuple[int, int]  # rows [start, stop) of the arena
Link = tuple[Tensor, Tensor, Tensor | None]  # an operand of a sum: (rows written, rows read, scale or None for ones)


@dataclass(frozen=True)
class Place:
    """What the layout says of a stage, in rows of the arena.

    fresh        rows to clear before it runs forward
    zero         rows to clear before its adjoint
    accumulate   its adjoint adds to what the adjoints of later stages have written
    scratch      the first of the rows that its adjoint has for itself, one for each read

    >>> Place(fresh=((0, 16),), accumulate=True)
    Place(fresh=((0, 16),), zero=(), accumulate=True, scratch=0)
    """

    fresh: tuple[Span, ...] = ()
    zero: tuple[Span, ...] = ()
    accumulate: bool = False
    scratch: int = 0


@dataclass(frozen=True, eq=False)
class Tap:
    """Where the cotangents of a value are while an adjoint passes it.

    step     of the program
    before   the stage in front of whose adjoint they are complete; adjoints run from the last stage to the first
    rows     (units,) int32, -1 for a dead unit, whose cotangent is zero

    >>> Tap(3, 1, torch.tensor([0, -1], dtype=torch.int32)).before
    1
    """

    step: int
    before: int
    rows: Tensor

    @property
    def whole(self) -> bool:
        """Is every unit live?"""
        return bool((self.rows >= 0).all())


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """A step of a plan.

    step     of the program, whose live units are written
    reads    int32 rows of any shape, which may repeat; -1 for none
    writes   int32 rows of any shape, all different; -1 for none
    place    set by the layout

    >>> rows = torch.tensor([0, -1], dtype=torch.int32)
    >>> Stage(step=3, reads=rows, writes=rows).moved(torch.tensor([7], dtype=torch.int32)).reads.tolist()
    [7, -1]
    """

    step: int
    reads: Tensor
    writes: Tensor
    place: Place = Place()

    def moved(self, table: Tensor) -> Stage:
        """The stage with `table[row]` for every row; table (rows,) int32."""
        return replace(self, reads=map_rows(self.reads, table), writes=map_rows(self.writes, table))


@dataclass(frozen=True, eq=False, kw_only=True)
class Gather(Stage):
    """A convolution or fully connected layer over live units: each output sums weighted inputs under some taps.

    sites          the weights, and which positions meet under which tap
    reads          (input positions, inputs) rows
    writes         (output positions, outputs) rows
    input_scale    (inputs,) what each input is multiplied by first; None for ones
    output_scale   (outputs,) what each output is multiplied by afterwards; None for ones
    own            the buffer of a sum that the stage adds onto; None where its outputs are overwritten
    repeats        some row is read twice, as a pooling winner of two windows is

    >>> import specxai
    >>> from specxai.plan import Planner
    >>> graph = specxai.linearize(torch.nn.Conv2d(1, 4, 3).eval(), torch.ones(1, 1, 5, 5)).graph
    >>> stage = Planner(graph).plan([graph.input], [max(graph.nodes)], []).stages[0]
    >>> stage.reads.shape, stage.writes.shape, stage.weight().shape, stage.live, stage.multiply_adds()
    (torch.Size([25, 1]), torch.Size([9, 4]), torch.Size([1, 4, 1, 9]), 36, 324)
    """

    sites: Sites
    input_scale: Tensor | None = None
    output_scale: Tensor | None = None
    own: int | None = None
    repeats: bool = False

    @property
    def adds(self) -> bool:
        """Does the stage add onto rows that another has written?"""
        return self.own is not None

    @property
    def live(self) -> int:
        """Outputs that are computed."""
        return int((self.writes >= 0).sum())

    @property
    def packed(self) -> bool:
        """Is it one position on both sides, so that its live weights are one matrix?"""
        return len(self.reads) == len(self.writes) == self.sites.groups == 1

    @property
    def depthwise(self) -> bool:
        """Has every group one input and one output?"""
        sites = self.sites
        return sites.groups > 1 and sites.inputs == sites.outputs == sites.groups

    def apart(self) -> tuple[Tensor, Sum | None]:
        """(rows as `reads`, none twice; the copy of what is read onto them, None where no row is read twice).

        The adjoint writes these rows first: an input that is read twice, as a pooling winner of two windows is, has
        each time a row of its own.  The adjoint of the copy then folds them.

        >>> import specxai
        >>> from specxai.plan import Planner
        >>> net = torch.nn.Sequential(torch.nn.MaxPool1d(2, 1), torch.nn.Conv1d(1, 1, 2)).eval()
        >>> graph = specxai.linearize(net, torch.tensor([[[1.0, 9.0, 2.0]]])).graph
        >>> stage = Planner(graph).plan([graph.input], [max(graph.nodes)], []).stages[0]
        >>> rows, copy = stage.apart()
        >>> stage.reads.tolist(), rows.tolist(), copy.writes.tolist(), copy.reads.tolist()
        ([[1], [1]], [[16], [17]], [16, 17], [1, 1])
        """
        if not self.repeats:
            return self.reads, None
        live = self.reads >= 0
        rows = torch.arange(int(live.sum()), dtype=torch.int32, device="cpu") + self.place.scratch
        own = torch.full_like(self.reads, -1)
        own[live] = rows
        copy = sum_of(self.step, [(rows, self.reads[live], None)])
        return own, replace(copy, place=Place(accumulate=self.place.accumulate))

    def weight(self) -> Tensor:
        """The weights with the scales in them, (groups, outputs, inputs, taps)."""
        weight, groups = self.sites.weight, self.sites.groups
        if self.input_scale is not None:
            weight = weight * self.input_scale.to(weight.device).reshape(groups, 1, -1, 1)
        if self.output_scale is not None:
            weight = weight * self.output_scale.to(weight.device).reshape(groups, -1, 1, 1)
        return weight

    def multiply_adds(self) -> int:
        """Live outputs times the live inputs that each reads."""
        groups = self.sites.groups
        live_in, live_out = ((rows >= 0).reshape(len(rows), groups, -1).sum(2) for rows in (self.reads, self.writes))
        live_in = torch.cat([live_in, live_in.new_zeros(1, groups)])  # which -1 finds
        return sum(int((live_in[under.long()] * live_out).sum()) for under in self.sites.reads.unbind(1))


@dataclass(frozen=True, eq=False, kw_only=True)
class Sum(Stage):
    """Rows summed and scaled, entry by entry: writes[e] += scale[e] · reads[e].

    It stands for the sum of several values, for a pool, and for the copy of one value whose scale no weight can take.

    reads, writes   (entries,) rows; here a row may be written by several entries
    sizes           entries of each operand of the sum, in order
    scales          of each operand: (its entries,), None for ones

    >>> import specxai
    >>> from specxai.plan import Planner
    >>> graph = specxai.linearize(torch.nn.AvgPool1d(2).eval(), torch.ones(1, 1, 4)).graph
    >>> stage = Planner(graph).plan([graph.input], [max(graph.nodes)], []).stages[0]
    >>> stage.reads.tolist(), len(stage.writes.unique()), stage.scale(torch.float32).tolist()
    ([0, 1, 2, 3], 2, [0.5, 0.5, 0.5, 0.5])
    """

    sizes: tuple[int, ...]
    scales: tuple[Tensor | None, ...]

    def links(self) -> list[Link]:
        """Each operand as (rows written, rows read, scale or None for ones), all of shape (its entries,)."""
        return list(zip(self.writes.split(self.sizes), self.reads.split(self.sizes), self.scales, strict=True))

    def scale(self, dtype: torch.dtype) -> Tensor | None:
        """The scales of all entries, (entries,), None for ones."""
        if all(scale is None for scale in self.scales):
            return None
        return torch.cat([torch.ones(size, dtype=dtype, device="cpu") if scale is None else scale.to(dtype)
                          for size, scale in zip(self.sizes, self.scales, strict=True)])


def sum_of(step: int, links: Sequence[Link]) -> Sum:
    to, rows, scales = zip(*links, strict=True)
    return Sum(step=step, reads=torch.cat(rows).int(), writes=torch.cat(to).int(), sizes=tuple(map(len, to)),
               scales=scales)


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRank(Stage):
    """A diagonal plus a low rank in groups of units, as a norm's or a softmax's derivative.

    writes[g, i] = diagonal[g, i] · reads[g, i] + Σ_r left[g, r, i] Σ_j right[g, r, j] · reads[g, j]

    reads, writes   (groups, n) rows, each different from the others of its table
    diagonal        (groups, n)
    left, right     (groups, rank, n)

    >>> import specxai
    >>> from specxai.plan import Planner
    >>> graph = specxai.linearize(torch.nn.Softmax(-1).eval(), torch.ones(2, 3)[:1]).graph
    >>> stage = Planner(graph).plan([graph.input], [max(graph.nodes)], []).stages[0]
    >>> stage.reads.tolist(), stage.left.shape
    ([[0, 1, 2]], torch.Size([1, 1, 3]))
    """

    diagonal: Tensor
    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class Operand:
    """One value that an opaque map takes: its units `at` are rows, times `scale`; all others are zero.

    shape   of the value
    """

    term: Term
    at: Tensor
    scale: Tensor | None
    shape: torch.Size


@dataclass(frozen=True, eq=False, kw_only=True)
class Opaque(Stage):
    """A linear map known only by its products: rows are spread to whole values, and live rows taken back.

    reads      the rows of all operands, one after the other
    at         (live outputs,) the unit of the value, of shape `shape`, that each row of `writes` is

    >>> import specxai
    >>> from specxai.plan import Planner
    >>> cumulated = torch.nn.Module()
    >>> cumulated.forward = lambda x: x.cumprod(-1)
    >>> graph = specxai.linearize(cumulated.eval(), torch.ones(1, 3)).graph
    >>> stage = Planner(graph).plan([graph.input], [max(graph.nodes)], []).stages[0]
    >>> type(stage).__name__, stage.shape, [rows.tolist() for _, rows in stage.parts()]
    ('Opaque', torch.Size([1, 3]), [[0, 1, 2]])
    """

    operands: tuple[Operand, ...]
    at: Tensor
    shape: torch.Size

    def parts(self) -> list[tuple[Operand, Tensor]]:
        """Each operand with its rows, (its live units,)."""
        return list(zip(self.operands, self.reads.split([len(o.at) for o in self.operands]), strict=True))


def opaque(step: int, node: LinearNode, inputs: dict[int, Rows], outputs: Rows, shapes: dict[int, torch.Size],
           shape: torch.Size) -> Opaque:
    """The node as an opaque map of those of its inputs that are given."""
    terms = [term for term in node.terms if term.input in inputs]
    live = [inputs[term.input].live() for term in terms]
    at, rows, _ = outputs.live()
    operands = tuple(Operand(term, units, scale, shapes[term.input])
                     for term, (units, _, scale) in zip(terms, live, strict=True))
    return Opaque(step=step, reads=torch.cat([rows for _, rows, _ in live]), writes=rows, operands=operands, at=at,
                  shape=shape)


def channel_constant(table: Tensor, rows: Tensor) -> bool:
    """Is the scale (positions, channels) the same at every live position of a channel?"""
    live = rows >= 0
    low = select(live, table, torch.inf).amin(0)
    high = select(live, table, -torch.inf).amax(0)
    return bool((high <= low).all())


def per_channel(table: Tensor, rows: Tensor) -> Tensor:
    """(channels,) of a scale that is constant per channel; zero for a channel with no live position."""
    return select(rows >= 0, table, -torch.inf).amax(0).nan_to_num(neginf=0.0)


def output_scale(stage: Gather, rows: Tensor, scale: Tensor) -> Tensor | None:
    """(outputs,) where the scales of the written rows are constant per channel, so that the weights can take them."""
    by_row = scale.new_ones(1 + int(rows.max()))
    by_row[rows.long()] = scale
    table = by_row[stage.writes.long()]
    return per_channel(table, stage.writes) if channel_constant(table, stage.writes) else None
