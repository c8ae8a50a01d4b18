"""Sums, differences, products, quotients: identity and diagonal terms; residual adds; bilinear products."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.rules.base import Call, LinearNode, Term, expand_to, one, rule, sum_to, unchanged


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
            constant = torch.as_tensor(call.args[position], dtype=call.value.dtype, device=call.value.device).detach()
            offset = (sign * constant).expand(call.value.shape)
    return LinearNode(tuple(terms), offset=offset)


@rule("mul.Tensor", "mul.Scalar")
def mul(call: Call) -> LinearNode | None:
    """A factor that does not depend on x is a scale; two that do are a product, each term the other times the unit."""
    if call.ref(0) is None or call.ref(1) is None:
        position = 0 if call.ref(0) is not None else 1
        return LinearNode((scaled(call, position, _constant(call, 1 - position)),))
    left, right = call.args[0].detach(), call.args[1].detach()
    curved = left.is_floating_point() and right.is_floating_point()  # a mask only changes where a comparison does
    if call.policy == "frozen" and curved:
        held = [call.ref(p) in call.gated for p in (0, 1)]
        if held[0] != held[1]:
            position = 1 if held[0] else 0
            return LinearNode((scaled(call, position, call.args[1 - position].detach()),), curved=curved)
        # Both factors are gates, or neither: each takes half.
        return LinearNode((scaled(call, 0, right / 2), scaled(call, 1, left / 2)), curved=curved)
    return LinearNode((scaled(call, 0, right), scaled(call, 1, left)), offset=-call.value, curved=curved)


@rule("div.Tensor", "div.Scalar")
def div(call: Call) -> LinearNode | None:
    """Division by what does not depend on x; a frozen denominator is held."""
    if call.ref(1) is not None and call.policy == "frozen" and call.ref(0) is not None:
        return LinearNode((scaled(call, 0, 1 / call.args[1].detach()),), curved=True)  # the denominator is held
    if call.ref(1) is not None:
        return None
    return LinearNode((scaled(call, 0, 1 / _constant(call, 1)),))


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
            part = torch.where(chosen, _constant(call, position), 0.0).to(call.value).expand(call.value.shape)
            offset = part if offset is None else offset + part
    return LinearNode(tuple(terms), offset=offset)


@rule("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(call: Call) -> LinearNode | None:
    """A constant where the mask says so, often −∞."""
    if not call.only(0):
        return None
    mask = call.args[1]
    constant = torch.as_tensor(_constant(call, 2), dtype=call.value.dtype, device=call.value.device)
    return LinearNode((scaled(call, 0, ~mask),), offset=torch.where(mask, constant, 0).expand(call.value.shape))


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
    return LinearNode((), offset=call.value.detach(), curved=True)


def _constant(call: Call, position: int) -> Tensor | float:
    """An argument that does not depend on x, integers in the dtype of the value: 1 / n has the default dtype."""
    value = call.args[position]
    if not isinstance(value, Tensor):
        return value
    counts = not value.is_floating_point() and value.dtype is not torch.bool
    return value.detach().to(call.value.dtype) if counts else value.detach()
