"""Index maps: views, permutations, slices, concatenation, padding.  No arithmetic, adjoints are the inverse maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from specxai.capture.program import Ref
from specxai.rules.base import Call, LinearNode, Term, expand_to, one, rule, selection, sum_to, unchanged
from specxai.rules.elementwise import scaled


@rule("view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "unflatten.int",
      "squeeze.dim", "squeeze.dims", "squeeze.default", "unsqueeze.default", "_reshape_alias.default",
      "view_copy.default")
def reshape(call: Call) -> LinearNode:
    """The same units in the same order, in another shape."""
    own, shape = call.args[0].shape, call.value.shape
    return one(call, lambda b: b.reshape(b.shape[0], *shape), lambda b: b.reshape(b.shape[0], *own), picks=unchanged,
               view=True)


@rule("permute.default", "transpose.int", "t.default", "numpy_T.default", "mT.default", "movedim.int",
      "movedim.intlist", "swapaxes.default")
def permute(call: Call) -> LinearNode:
    """The axes in another order."""
    # The call itself, on an array that numbers its axes, tells where each axis goes.
    shape = call.args[0].shape
    order = _axis_order(call, len(shape))
    inverse = [order.index(axis) for axis in range(len(order))]
    forward, back = [0, *(a + 1 for a in order)], [0, *(a + 1 for a in inverse)]
    return one(call, lambda b: b.permute(forward), lambda b: b.permute(back), picks=lambda b: b.permute(forward))


def _axis_order(call: Call, ndim: int) -> list[int]:
    sizes = torch.empty(tuple(range(2, 2 + ndim)), device="meta")
    return [size - 2 for size in call.step.target(sizes, *call.args[1:], **call.kwargs).shape]


@rule("select.int", "slice.Tensor", "narrow.default", "split.Tensor", "split_with_sizes.default", "chunk.default",
      "unbind.int", "unsafe_split.Tensor", "unsafe_split_with_sizes.default", "select_copy.int", "slice_copy.Tensor")
def part(call: Call) -> LinearNode | None:
    """A part along one axis: a view of the block, which costs nothing."""
    own, shape, axis = call.args[0].shape, call.value.shape, _axis(call)
    if not call.only(0) or axis is None or not call.value.numel():
        return gather(call)
    numbers = torch.arange(own[axis]).reshape([-1 if a == axis else 1 for a in range(len(own))]).expand(own)
    taken = call.step.target(numbers, *call.args[1:], **call.kwargs)
    taken = taken[call.output] if isinstance(taken, (list, tuple)) else taken
    places = taken.unique().tolist()
    start, step, count = places[0], places[1] - places[0] if len(places) > 1 else 1, len(places)
    stop = start + step * (count - 1) + 1

    def rows(block: Tensor) -> Tensor:
        return torch.ops.aten.slice.Tensor(block, axis + 1, start, stop, step)

    def apply(block: Tensor) -> Tensor:
        return rows(block).reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        out = block.new_zeros(block.shape[0], *own)
        place = rows(out)
        place.copy_(block.reshape(place.shape))
        return out

    return one(call, apply, adjoint, picks=apply)


def _axis(call: Call) -> int | None:
    """The one axis that the call names."""
    for position, argument in enumerate(call.step.target._schema.arguments):
        if argument.name == "dim" and call.args[0].ndim:
            return call.arg(position, "dim", 0) % call.args[0].ndim
    return None


@rule("split.sizes", "tensor_split.sections", "index_select.default", "flip.default", "roll.default",
      "index.Tensor", "as_strided.default", "diagonal.default",
      "pixel_shuffle.default", "pixel_unshuffle.default", "repeat.default", "channel_shuffle.default",
      "unfold.default", "_unsafe_index.Tensor",
      "gather.default", "take_along_dim.default", "take.default", "repeat_interleave.self_int",
      "repeat_interleave.self_Tensor", "embedding.default", "masked_select.default", "unfold_copy.default",
      "permute_copy.default", "rot90.default", "unsqueeze_copy.default", "diagonal_copy.default",
      "expand_as.default", "native_channel_shuffle.default", "unbind_copy.int", "_reshape_copy.default",
      "squeeze_copy.dim", "transpose_copy.int")
def gather(call: Call) -> LinearNode | None:
    """Every output is one of the inputs: the call on the inputs' numbers says which."""
    if not call.only(0):
        return None
    own = call.args[0]
    numbers = torch.arange(own.numel(), device=own.device).reshape(own.shape)
    rows = call.step.target(numbers, *call.args[1:], **call.kwargs)
    return selection(call, (rows[call.output] if isinstance(rows, (list, tuple)) else rows).reshape(-1))


@rule("tril.default", "triu.default")
def triangle(call: Call) -> LinearNode:
    """The units on one side of a diagonal, zeros on the other."""
    kept = call.step.target(torch.ones_like(call.args[0], dtype=torch.bool), *call.args[1:], **call.kwargs)
    return LinearNode((scaled(call, 0, kept),))


@rule("cumsum.default")
def cumulative(call: Call) -> LinearNode | None:
    """Sums along an axis up to each place."""
    if not call.only(0) or call.args[0].ndim == 0:
        return None
    axis = call.args[1] % call.args[0].ndim + 1
    return one(call, lambda block: block.cumsum(axis), lambda block: block.flip(axis).cumsum(axis).flip(axis),
               flops=call.value.numel())


@rule("cat.default", "stack.default")
def concatenate(call: Call) -> LinearNode:
    """Eq. (13): each part is written to its own rows; parts that do not depend on x are the offset."""
    parts, templates = call.args[0], call.step.args[0]
    stacked = "stack" in str(call.step.target)
    axis = call.arg(1, "dim", 0) % call.value.ndim
    offset, start, terms, numbers, units = None, 0, [], [], 0
    for part, template in zip(parts, templates, strict=True):
        if part.numel() == 0 and not stacked:
            continue
        size = 1 if stacked else part.shape[axis]
        if isinstance(template, Ref) and template.index in call.active:
            terms.append(_part(template.index, part.shape, call.value.shape, axis, start, size))
            numbers.append((part.shape, units))
            units += part.numel()
        else:
            numbers.append((part.shape, None))
            offset = torch.zeros_like(call.value) if offset is None else offset
            offset.narrow(axis, start, size).copy_(part.detach().reshape(offset.narrow(axis, start, size).shape))
        start += size

    def joined() -> Tensor:
        blocks = [torch.full(shape, -1, dtype=torch.int32, device="cpu") if first is None else
                  torch.arange(first, first + shape.numel(), dtype=torch.int32, device="cpu").reshape(shape)
                  for shape, first in numbers]
        return (torch.stack if stacked else torch.cat)(blocks, axis).reshape(-1)

    def together(given: Sequence[Tensor | None]) -> Tensor:
        some = next(block for block in given if block is not None)
        left = iter(given)
        blocks = []
        for shape, first in numbers:
            block = next(left) if first is not None else None
            blocks.append(some.new_zeros(len(some), *shape) if block is None else block.reshape(len(some), *shape))
        return (torch.stack if stacked else torch.cat)(blocks, axis + 1)

    return LinearNode(tuple(terms), offset=offset, joined=joined, together=together)


def _part(index: int, own, shape, axis: int, start: int, size: int) -> Term:
    def apply(block: Tensor) -> Tensor:
        out = block.new_zeros(block.shape[0], *shape)
        rows = out.narrow(axis + 1, start, size)
        rows.copy_(block.reshape(rows.shape))
        return out

    def adjoint(block: Tensor) -> Tensor:
        return block.narrow(axis + 1, start, size).reshape(block.shape[0], *own)

    return Term(index, apply, adjoint)


_WRITTEN = {"index_put": 2, "masked_scatter": 2, "scatter": 3, "index_copy": 3}  # the argument that is written, else 1


@rule("copy.default", "slice_scatter.default", "select_scatter.default", "diagonal_scatter.default",
      "as_strided_scatter.default", "index_put.default", "masked_scatter.default", "scatter.src", "index_copy.default")
def overwrite(call: Call) -> LinearNode | None:
    """Assignment to a part: every output is a unit of what was there or of what is written.

    The call on the numbers of one operand, zeros in the other's place, says which.
    """
    name = call.step.target._schema.name.partition("::")[2]
    where = (0, _WRITTEN.get(name, 1))
    live = [position for position in where if call.ref(position) is not None]
    if not call.only(*live) or (name == "index_put" and call.arg(3, "accumulate", False)):
        return None

    def made(operands: dict[int, Tensor]) -> Tensor:
        args = [operands.get(position, argument) for position, argument in enumerate(call.args)]
        return call.step.target(*args, **call.kwargs).expand(call.value.shape)

    terms, offset, parts = [], None, {position: call.args[position].detach() for position in where}
    for position, part in parts.items():
        other = {p: torch.zeros_like(held) for p, held in parts.items() if p != position}
        if position not in live:
            constant = made(other | {position: part})
            offset = constant if offset is None else offset + constant
            continue
        numbers = torch.arange(1, part.numel() + 1, device=part.device).reshape(part.shape)
        rows = made({p: held.long() for p, held in other.items()} | {position: numbers}).reshape(-1) - 1
        terms.append(_placed(call.ref(position), part.shape, call.value.shape, rows))
    return LinearNode(tuple(terms), offset=offset)


@rule("diag_embed.default")
def spread(call: Call) -> LinearNode:
    """A vector as the diagonal of a matrix of zeros."""
    own = call.args[0]
    numbers = torch.arange(1, own.numel() + 1, device=own.device).reshape(own.shape)
    rows = call.step.target(numbers, *call.args[1:], **call.kwargs).reshape(-1) - 1
    return LinearNode((_placed(call.ref(0), own.shape, call.value.shape, rows),))


def _placed(index: int, own, shape, rows: Tensor) -> Term:
    """Output unit i is input unit `rows[i]`, or zero for −1."""
    zero = rows < 0

    def apply(block: Tensor) -> Tensor:
        out = block.reshape(block.shape[0], -1).index_select(1, rows.clamp_min(0)).masked_fill(zero, 0)
        return out.reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        out = block.new_zeros(block.shape[0], own.numel())
        taken = block.reshape(block.shape[0], -1).masked_fill(zero, 0)
        return out.index_add_(1, rows.clamp_min(0), taken).reshape(block.shape[0], *own)

    return Term(index, apply, adjoint, picks=apply)


@rule("constant_pad_nd.default")
def constant_pad(call: Call) -> LinearNode:
    """Rows of zeros, or of a constant, which is the offset; negative numbers cut."""
    return _constant_pad(call, call.arg(2, "value", 0))


@rule("pad.default")
def pad(call: Call) -> LinearNode:
    """Padding in any mode."""
    if call.arg(2, "mode", "constant") == "constant":
        return _constant_pad(call, call.arg(3, "value"))
    return copy_pad(call)


def _constant_pad(call: Call, value: float | None) -> LinearNode:
    own, pads = call.args[0], list(call.args[1])
    back = [-amount for amount in pads]
    offset = F.pad(torch.zeros_like(own), pads, value=value) if value else None
    return one(call, lambda b: F.pad(b, pads), lambda b: F.pad(b, back), offset=offset, picks=lambda b: F.pad(b, pads))


@rule("reflection_pad1d.default", "reflection_pad2d.default", "replication_pad1d.default",
      "replication_pad2d.default")
def copy_pad(call: Call) -> LinearNode:
    """Reflection, replication, circular: the call on the inputs' numbers says which one each output is."""
    own = call.args[0]
    # These calls take floating-point numbers only; float64 counts exactly to 2^53.
    numbers = torch.arange(own.numel(), device=own.device, dtype=torch.float64).reshape(own.shape)
    return selection(call, call.step.target(numbers, *call.args[1:], **call.kwargs).long().reshape(-1))


@rule("expand.default", "broadcast_to.default", "expand_copy.default")
def expand(call: Call) -> LinearNode:
    """Units repeated along axes, as torch broadcasts."""
    own, shape = call.args[0].shape, call.value.shape
    return one(call, lambda b: expand_to(b, shape), lambda b: sum_to(b, own), picks=lambda b: expand_to(b, shape))
