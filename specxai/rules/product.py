"""Products and quotients, z₁ z₂: each factor's term holds the other; the policy says which factor has one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specxai.rules.base import Call, LinearNode, Term, rule, unchanged
from specxai.rules.elementwise import constant, scaled


def bilinear(call: Call, positions: tuple[int, int], left: Callable[[float], Term], right: Callable[[float], Term],
             value: Tensor) -> LinearNode:
    """The node of a product that is linear in two live arguments.

    left, right   the term of each, times a number, with the other argument held
    value         the product
    """
    shares = call.policy.shares(*(call.kind(position) for position in positions))
    terms = tuple(term(share) for term, share in zip((left, right), shares, strict=True) if share)
    together = None
    if len(terms) == 2 and all(isinstance(term.factor, Tensor) and term.picks is unchanged for term in terms):
        together = _both(terms[0].factor, terms[1].factor)
    offset = -value if call.offsets and sum(shares) != 1 else None
    return LinearNode(terms, offset=offset, curved=True, together=together)


def _both(left: Tensor, right: Tensor) -> Callable:
    """Both terms of a product of numbers in one pass less."""

    def together(given: Sequence[Tensor | None]) -> Tensor:
        first, second = given
        if first is None or second is None:
            return second * right if first is None else first * left
        return (first * left).addcmul_(second, right)

    return together


def plus(node: LinearNode, call: Call, position: int, scale: float) -> LinearNode:
    """The node with `scale` times argument `position`, live or constant, added to it."""
    if call.ref(position) is not None:
        return _with(node, (scaled(call, position, scale),), node.offset)
    added = (scale * torch.as_tensor(constant(call, position), device=call.value.device)).expand(call.value.shape)
    return _with(node, (), added if node.offset is None else node.offset + added)


def _with(node: LinearNode, terms: tuple[Term, ...], offset: Tensor | None) -> LinearNode:
    return LinearNode((*terms, *node.terms), offset=offset, curved=node.curved, resets=node.resets and not terms)


@rule("mul.Tensor", "mul.Scalar")
def mul(call: Call) -> LinearNode | None:
    """A factor that does not depend on x is a scale; two that do are a product, whose factors the policy may hold."""
    return _elementwise(call, 0, 1, 1.0, call.value.detach())


@rule("addcmul.default")
def addcmul(call: Call) -> LinearNode | None:
    """z₀ + α z₁ z₂, unit by unit."""
    return plus(_elementwise(call, 1, 2, call.kwargs.get("value", 1)), call, 0, 1.0)


def _elementwise(call: Call, first: int, second: int, by: float, value: Tensor | None = None) -> LinearNode:
    """by · z₁ z₂, number by number; `value` is that, where it is known."""
    live = [position for position in (first, second) if call.ref(position) is not None]
    if not live:
        return LinearNode((), offset=(by * constant(call, first) * constant(call, second)).expand(call.value.shape))
    if len(live) == 1:
        other = constant(call, first + second - live[0])
        return LinearNode((scaled(call, live[0], other if by == 1 else by * other),))
    left, right = call.args[first].detach(), call.args[second].detach()

    def times(position: int, other: Tensor) -> Callable[[float], Term]:
        return lambda share: scaled(call, position, other if share * by == 1 else share * by * other)

    value = (by * left * right).expand(call.value.shape) if value is None else value
    return bilinear(call, (first, second), times(first, right), times(second, left), value)


@rule("div.Tensor", "div.Scalar")
def div(call: Call) -> LinearNode:
    """Division by what does not depend on x is a scale; a live denominator is a factor 1 / z, which the policy may
    hold.
    """
    return _quotient(call, 0, 1, 1.0)


@rule("addcdiv.default")
def addcdiv(call: Call) -> LinearNode:
    """z₀ + α z₁ / z₂, unit by unit."""
    return plus(_quotient(call, 1, 2, call.kwargs.get("value", 1)), call, 0, 1.0)


def _quotient(call: Call, first: int, second: int, by: float) -> LinearNode:
    """by · z₁ / z₂.  A denominator is a gate: it is held unless products are differentiated and its kind is."""
    above, below = constant(call, first), constant(call, second)
    value = by * above / below
    over = scaled(call, first, by / below) if call.ref(first) is not None else None
    if call.ref(second) is None:
        return LinearNode((over,)) if over is not None else LinearNode((), offset=value.expand(call.value.shape))
    if over is not None and (call.policy.product != "tangent" or call.policy.holds(call.kind(second))):
        return LinearNode((over,), curved=True)
    # Of a constant over z: the derivative −c/z², as of a reciprocal, whose value at 0 counts as 0.
    secant = over is None and call.policy.activation == "held"
    under = scaled(call, second, value / below if secant else -value / below)
    if over is not None:
        return LinearNode((over, under), offset=value.expand(call.value.shape), curved=True)
    return LinearNode((under,), offset=None if secant else (2 * value).expand(call.value.shape), curved=True,
                      kind="activation")


@rule("lerp.Scalar", "lerp.Tensor")
def lerp(call: Call) -> LinearNode | None:
    """z₁ + w (z₂ − z₁) with a constant weight."""
    if call.ref(2) is not None:
        return None
    weight, node = constant(call, 2), LinearNode(())
    for position, share in ((0, 1 - weight), (1, weight)):
        if call.ref(position) is not None:
            node = _with(node, (scaled(call, position, share),), node.offset)
        else:
            part = (share * constant(call, position)).expand(call.value.shape)
            node = _with(node, (), part if node.offset is None else node.offset + part)
    return node
