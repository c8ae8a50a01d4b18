"""Sums, differences, choices, copies: identity and diagonal terms; residual adds."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.rules.base import Call, LinearNode, Term, expand_to, one, rule, sum_to, unchanged
from specxai.rules.policy import STOPPED


def diagonal(call: Call, scale: Tensor, offset: Tensor | None, *, position: int = 0, **node) -> LinearNode:
    """z ↦ scale · z + offset, `scale` broadcast against the value."""
    term = scaled(call, position, scale)
    return LinearNode((term,), offset=offset, scale=scale, **node)


def scaled(call: Call, position: int, scale: Tensor | float) -> Term:
    """The term z ↦ scale · z with torch's broadcasting; `scale` is constant."""
    shape, own = call.value.shape, call.args[position].shape
    plain = not isinstance(scale, Tensor) and scale == 1

    def apply(block: Tensor) -> Tensor:
        block = block if own == shape else expand_to(block, shape)
        return block if plain else block * scale

    def adjoint(block: Tensor) -> Tensor:
        block = block if plain else block * scale
        return block if own == shape else sum_to(block, own)

    units = unchanged if own == shape else lambda block: expand_to(block, shape)
    return Term(call.ref(position), apply, adjoint, 0 if plain else call.value.numel(), units, scale)


@rule("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Scalar", "rsub.Tensor")
def add(call: Call) -> LinearNode | None:
    """z₁ + α z₂: a constant operand is an offset, two that depend on x are a residual add (12)."""
    alpha = call.kwargs.get("alpha", call.args[2] if len(call.args) > 2 else 1)
    name = str(call.step.target)
    signs = (1, alpha) if "add" in name else (-alpha, 1) if "rsub" in name else (1, -alpha)
    terms, offset = [], None
    for position, sign in enumerate(signs):
        if call.ref(position) is not None:
            terms.append(scaled(call, position, sign))
        else:
            added = torch.as_tensor(call.args[position], dtype=call.value.dtype, device=call.value.device).detach()
            offset = (added if sign == 1 else sign * added).expand(call.value.shape)
    return LinearNode(tuple(terms), offset=offset)


@rule("where.self", "where.ScalarSelf", "where.ScalarOther")
def where(call: Call) -> LinearNode | None:
    """A choice between two values, made at x."""
    if call.ref(0) is not None:
        return None
    mask, terms, offset = call.args[0], [], None
    for position, chosen in ((1, mask), (2, ~mask)):
        if call.ref(position) is not None:
            terms.append(scaled(call, position, chosen))
        else:
            part = torch.where(chosen, constant(call, position), 0.0).to(call.value).expand(call.value.shape)
            offset = part if offset is None else offset + part
    return LinearNode(tuple(terms), offset=offset)


@rule("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(call: Call) -> LinearNode | None:
    """A constant where the mask says so, often −∞."""
    if not call.only(0):
        return None
    mask = call.args[1]
    filled = torch.as_tensor(constant(call, 2), dtype=call.value.dtype, device=call.value.device)
    return LinearNode((scaled(call, 0, ~mask),), offset=torch.where(mask, filled, 0).expand(call.value.shape))


@rule("neg.default")
def neg(call: Call) -> LinearNode:
    """Every unit times −1."""
    return LinearNode((scaled(call, 0, -1.0),))


@rule("clone.default", "alias.default", "contiguous.default", "dropout.default", "feature_dropout.default",
      "lift_fresh_copy.default", "_to_copy.default", "detach_.default", "native_dropout.default")
def identity(call: Call) -> LinearNode | None:
    """Copies, and dropout in eval mode; a change of dtype is followed by the adjoint change."""
    name, own, dtype = str(call.step.target), call.args[0].dtype, call.value.dtype
    if "dropout" in name and call.args[2] is True and call.args[1] > 0:
        return None
    if not call.value.is_floating_point() or call.output:
        return None
    return one(call, lambda block: block.to(dtype), lambda block: block.to(own), picks=unchanged, view=True)


@rule("detach.default")
def stop_gradient(call: Call) -> LinearNode:
    """A frozen factor: no term, the value is a constant offset."""
    return LinearNode((), offset=call.value.detach(), curved=True, kind=STOPPED)


def constant(call: Call, position: int) -> Tensor | float:
    """An argument that does not depend on x, integers in the dtype of the value: 1 / n has the default dtype."""
    value = call.args[position]
    if not isinstance(value, Tensor):
        return value
    counts = not value.is_floating_point() and value.dtype is not torch.bool
    return value.detach().to(call.value.dtype) if counts else value.detach()
