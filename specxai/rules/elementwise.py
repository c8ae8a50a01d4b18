"""Sums, differences, products, quotients: identity and diagonal terms; residual adds; bilinear products."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.rules.base import LinearNode, Site, Term, expand_to, one, rule, sum_to, unchanged


def diagonal(site: Site, scale: Tensor, offset: Tensor | None, *, position: int = 0, **node) -> LinearNode:
    """z ↦ scale · z + offset, `scale` broadcast against the value."""
    term = scaled(site, position, scale)
    return LinearNode((term,), offset=offset, scale=scale, **node)


def scaled(site: Site, position: int, scale: Tensor | float) -> Term:
    """The term z ↦ scale · z with torch's broadcasting; `scale` is constant."""
    shape, own = site.value.shape, site.args[position].shape
    plain = not isinstance(scale, Tensor) and scale == 1

    def apply(block: Tensor) -> Tensor:
        block = block if own == shape else expand_to(block, shape)
        return block if plain else block * scale

    def adjoint(block: Tensor) -> Tensor:
        block = block if plain else block * scale
        return block if own == shape else sum_to(block, own)

    units = unchanged if own == shape else lambda block: expand_to(block, shape)
    return Term(site.ref(position), apply, adjoint, 0 if plain else site.value.numel(), units, scale)


@rule("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Scalar", "rsub.Tensor")
def add(site: Site) -> LinearNode | None:
    """z₁ + α z₂: a constant operand is an offset, two that depend on x are a residual add (12)."""
    alpha = site.kwargs.get("alpha", site.args[2] if len(site.args) > 2 else 1)
    name = str(site.step.target)
    signs = (1, alpha) if "add" in name else (-alpha, 1) if "rsub" in name else (1, -alpha)
    terms, offset = [], None
    for position, sign in enumerate(signs):
        if site.ref(position) is not None:
            terms.append(scaled(site, position, sign))
        else:
            constant = torch.as_tensor(site.args[position], dtype=site.value.dtype, device=site.value.device).detach()
            offset = (sign * constant).expand(site.value.shape)
    return LinearNode(tuple(terms), offset=offset)


@rule("mul.Tensor", "mul.Scalar")
def mul(site: Site) -> LinearNode | None:
    if site.ref(0) is None or site.ref(1) is None:
        position = 0 if site.ref(0) is not None else 1
        return LinearNode((scaled(site, position, _constant(site, 1 - position)),))
    left, right = site.args[0].detach(), site.args[1].detach()
    curved = left.is_floating_point() and right.is_floating_point()  # a mask only changes where a comparison does
    if site.policy == "frozen" and curved:
        held = [site.ref(p) in site.gated for p in (0, 1)]
        if held[0] != held[1]:
            position = 1 if held[0] else 0
            return LinearNode((scaled(site, position, site.args[1 - position].detach()),), curved=curved)
        # Both factors are gates, or neither: each takes half.
        return LinearNode((scaled(site, 0, right / 2), scaled(site, 1, left / 2)), curved=curved)
    return LinearNode((scaled(site, 0, right), scaled(site, 1, left)), offset=-site.value, curved=curved)


@rule("div.Tensor", "div.Scalar")
def div(site: Site) -> LinearNode | None:
    if site.ref(1) is not None and site.policy == "frozen" and site.ref(0) is not None:
        return LinearNode((scaled(site, 0, 1 / site.args[1].detach()),), curved=True)  # the denominator is held
    if site.ref(1) is not None:
        return None
    return LinearNode((scaled(site, 0, 1 / _constant(site, 1)),))


@rule("where.self", "where.ScalarSelf", "where.ScalarOther")
def where(site: Site) -> LinearNode | None:
    """A choice between two values, made at x."""
    if site.ref(0) is not None:
        return None
    mask, terms, offset = site.args[0], [], None
    for position, chosen in ((1, mask), (2, ~mask)):
        if site.ref(position) is not None:
            terms.append(scaled(site, position, chosen))
        else:
            part = torch.where(chosen, _constant(site, position), 0.0).to(site.value).expand(site.value.shape)
            offset = part if offset is None else offset + part
    return LinearNode(tuple(terms), offset=offset)


@rule("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(site: Site) -> LinearNode | None:
    """A constant where the mask says so, often −∞."""
    if not site.only(0):
        return None
    mask = site.args[1]
    constant = torch.as_tensor(_constant(site, 2), dtype=site.value.dtype, device=site.value.device)
    return LinearNode((scaled(site, 0, ~mask),), offset=torch.where(mask, constant, 0).expand(site.value.shape))


@rule("neg.default")
def neg(site: Site) -> LinearNode:
    return LinearNode((scaled(site, 0, -1.0),))


@rule("clone.default", "alias.default", "contiguous.default", "dropout.default", "feature_dropout.default",
      "lift_fresh_copy.default", "_to_copy.default", "detach_.default", "native_dropout.default")
def identity(site: Site) -> LinearNode | None:
    """Copies, and dropout in eval mode; a change of dtype is followed by the adjoint change."""
    name, own, dtype = str(site.step.target), site.args[0].dtype, site.value.dtype
    if "dropout" in name and site.args[2] is True and site.args[1] > 0:
        return None
    if not site.value.is_floating_point() or site.output:
        return None
    return one(site, lambda block: block.to(dtype), lambda block: block.to(own), units=unchanged, view=True)


@rule("detach.default")
def stop_gradient(site: Site) -> LinearNode:
    """A frozen factor: no term, the value is a constant offset."""
    return LinearNode((), offset=site.value.detach(), curved=True)


def _constant(site: Site, position: int) -> Tensor | float:
    """An argument that does not depend on x, integers in the dtype of the value: 1 / n has the default dtype."""
    value = site.args[position]
    if not isinstance(value, Tensor):
        return value
    counts = not value.is_floating_point() and value.dtype is not torch.bool
    return value.detach().to(site.value.dtype) if counts else value.detach()
