"""Activations, eqs. (14)-(15): a slope per unit, and the gate that says which linear piece it is on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from specxai.rules.base import (
    Call,
    DiagonalPlusLowRank,
    Gate,
    LinearNode,
    along_axes,
    differentiating,
    finite,
    one,
    rule,
)
from specxai.rules.elementwise import diagonal, scaled

aten = torch.ops.aten
# Torch's own derivatives, (call, z, ones) -> σ'(z), of what transformers have: autograd would compute σ(z) again.
_DERIVATIVES = {
    aten.tanh.default: lambda call, z, ones: aten.tanh_backward(ones, call.value),
    aten.sigmoid.default: lambda call, z, ones: aten.sigmoid_backward(ones, call.value),
    aten.silu.default: lambda call, z, ones: aten.silu_backward(ones, z),
    aten.gelu.default: lambda call, z, ones: aten.gelu_backward(ones, z, **call.kwargs),
    aten.pow.Tensor_Scalar: lambda call, z, ones: call.args[1] * z ** (call.args[1] - 1) if call.args[1] else 0 * ones,
}


@rule("relu.default")
def relu(call: Call) -> LinearNode:
    """max(z, 0): slope 0 or 1."""
    return _pieces(call, [0.0], [0.0, 1.0])


@rule("leaky_relu.default")
def leaky_relu(call: Call) -> LinearNode:
    """Slope `negative_slope` below 0, 1 above."""
    return _pieces(call, [0.0], [call.arg(1, "negative_slope", 0.01), 1.0])


@rule("prelu.default", "_prelu_kernel.default")
def prelu(call: Call) -> LinearNode | None:
    """Slope 1 above 0, below it the weight, one for all units or one a channel."""
    if not call.only(0):
        return None
    z, weight = call.args[:2]
    if weight.numel() > 1 and z.ndim > 1:
        weight = weight.reshape(1, -1, *(1,) * (z.ndim - 2))
    return _pieces(call, [0.0], [weight.detach(), 1.0])


@rule("relu6.default")
def relu6(call: Call) -> LinearNode:
    """min(max(z, 0), 6): slope 0, 1, 0."""
    return _clipped(call, 0.0, 6.0)


@rule("hardtanh.default")
def hardtanh(call: Call) -> LinearNode:
    """min(max(z, min_val), max_val): slope 0, 1, 0."""
    return _clipped(call, call.arg(1, "min_val", -1.0), call.arg(2, "max_val", 1.0))


@rule("clamp.default")
def clamp(call: Call) -> LinearNode:
    """min(max(z, min), max) with numbers as bounds: slope 0, 1, 0."""
    return _clipped(call, call.arg(1, "min"), call.arg(2, "max"), closed=True)


@rule("clamp_min.default")
def clamp_min(call: Call) -> LinearNode:
    """max(z, min): slope 0 or 1."""
    return _clipped(call, call.arg(1, "min"), None, closed=True)


@rule("clamp_max.default")
def clamp_max(call: Call) -> LinearNode:
    """min(z, max): slope 1 or 0."""
    return _clipped(call, None, call.arg(1, "max"), closed=True)


@rule("abs.default")
def absolute(call: Call) -> LinearNode:
    """|z|: slope −1 or 1, and 0 at z = 0, as in torch."""
    z = call.args[0].detach()

    def crossing(z: Tensor, direction: Tensor) -> Tensor:
        time = torch.where(z * direction < 0, -z / direction, math.inf)
        return torch.where((z == 0) & (direction != 0), 0.0, time)

    return diagonal(call, z.sign(), None, gate=Gate(call.ref(0), z.sign().to(torch.int8), crossing), kind="activation")


@rule("hardsigmoid.default")
def hardsigmoid(call: Call) -> LinearNode:
    """Slope 1/6 between −3 and 3, 0 outside."""
    return _pieces(call, [-3.0, 3.0], [0.0, 1 / 6, 0.0])


@rule("sigmoid.default", "tanh.default", "silu.default", "gelu.default", "elu.default", "softplus.default",
      "hardswish.default", "mish.default", "exp.default", "log.default", "sqrt.default", "rsqrt.default",
      "pow.Tensor_Scalar", "reciprocal.default", "erf.default", "selu.default", "log_sigmoid.default", "celu.default",
      "sin.default", "cos.default", "tan.default", "expm1.default", "exp2.default", "log1p.default", "log2.default",
      "log10.default", "atan.default", "asin.default", "acos.default", "sinh.default", "cosh.default", "asinh.default",
      "erfc.default", "softshrink.default", "hardshrink.default", "threshold.default", "square.default")
def smooth(call: Call) -> LinearNode | None:
    """A smooth activation σ, unit by unit.

    tangent: slope σ'(z), offset σ(z) − σ'(z) z.  held: slope (σ(z) − σ(0)) / z, offset σ(0); where z is 0, the
    tangent.  σ(0) counts as 0 where it is not finite.
    """
    if not call.only(0):
        return None
    slope, offset = slope_and_offset(call, call.args[0].detach())
    return diagonal(call, slope, offset, gate=Gate(call.ref(0), None, None), kind="activation")


def slope_and_offset(call: Call, z: Tensor, function: Callable[[Tensor], Tensor] | None = None):
    """(slope, offset or None) of an activation at z, by the policy; of the call itself where no function is given."""

    def itself(z: Tensor) -> Tensor:
        return call.step.target(z, *call.args[1:], **call.kwargs)

    derivative = _DERIVATIVES.get(call.step.target) if function is None else None
    function = function or itself
    if call.policy.activation == "held" and not (z == 0).any():
        value, at_zero = function(z), finite(function(z.new_zeros(1)))
        return (value - at_zero) / z, at_zero.expand(z.shape) if at_zero.any() else None
    if derivative is not None:
        value = call.value.detach()
        slope = derivative(call, z, value.new_ones(()).expand_as(value))
    else:
        with differentiating():
            leaf = z.detach().requires_grad_()
            value = function(leaf)
            slope = torch.autograd.grad(value.sum(), leaf)[0]
        value = value.detach()
    offset: Tensor | None = torch.addcmul(value, slope, finite(z), value=-1) if call.offsets else None
    if call.policy.activation == "held":
        at_zero = finite(function(torch.zeros_like(z)))
        slope = torch.where(z == 0, slope, (value - at_zero) / z)
        if offset is not None:
            offset = torch.where(z == 0, offset, at_zero)
            offset = offset if offset.any() else None
    return slope, offset


@rule("maximum.default", "minimum.default", "clamp.Tensor", "clamp_min.Tensor", "clamp_max.Tensor",
      "pow.Tensor_Tensor", "pow.Scalar", "atan2.default", "hypot.default", "logaddexp.default", "xlogy.Tensor",
      "fmax.default", "fmin.default", "remainder.Scalar", "remainder.Tensor", "fmod.Scalar", "fmod.Tensor",
      "nan_to_num.default", "copysign.Tensor")
def of_several(call: Call) -> LinearNode | None:
    """Any other function of numbers, one or several live: its partial derivatives, and an offset."""
    live = [position for position in range(len(call.args)) if call.ref(position) is not None]
    if not call.only(*live):
        return None
    with differentiating():
        args = list(call.args)
        for position in live:
            args[position] = args[position].detach().expand(call.value.shape).clone().requires_grad_()
        value = call.step.target(*args, **call.kwargs)
        slopes = torch.autograd.grad(value.sum(), [args[position] for position in live])
    slopes = [finite(slope) for slope in slopes]
    offset = call.value.detach().clone()
    for position, slope in zip(live, slopes, strict=True):
        offset -= slope * finite(args[position].detach())
    terms = tuple(scaled(call, position, slope) for position, slope in zip(live, slopes, strict=True))
    return LinearNode(terms, offset=offset, gate=Gate(call.ref(live[0]), None, None), kind="activation")


@rule("sign.default", "sgn.default", "floor.default", "ceil.default", "round.default", "round.decimals",
      "trunc.default", "heaviside.default")
def steps(call: Call) -> LinearNode:
    """Flat wherever there is a derivative: a constant, and a gate."""
    return LinearNode((), offset=call.value.detach(), curved=True, kind="activation")


@rule("glu.default")
def glu(call: Call) -> LinearNode | None:
    """a σ(b) of two halves: a product of a value and an activated factor."""
    z = call.args[0].detach()
    axis = call.arg(1, "dim", -1) % z.ndim
    value, gate = z.chunk(2, axis)
    slope, _ = slope_and_offset(call, gate, torch.sigmoid)
    ours, theirs = call.policy.shares(call.kind(0), "activation")
    by_value, by_gate = ours * gate.sigmoid(), theirs * value * slope

    def apply(block: Tensor) -> Tensor:
        a, b = block.chunk(2, axis + 1)
        return a * by_value + b * by_gate if theirs else a * by_value

    def adjoint(block: Tensor) -> Tensor:
        return torch.cat([block * by_value, block * by_gate], axis + 1)

    offset = (1 - ours) * call.value.detach() - by_gate * gate if theirs else None
    return one(call, apply, adjoint, offset=offset, flops=4 * z.numel(), curved=True)


@rule("softmax.int", "_softmax.default", "log_softmax.int", "_log_softmax.default",
      "_safe_softmax.default")
def softmax(call: Call) -> LinearNode | None:
    """The derivative of p = softmax(z), z ↦ p (z − Σ p z), its own adjoint; of log p: z ↦ z − Σ p z.

    Held, p is a constant factor of the product that reads it; where none does, as for probabilities that a model
    returns, this derivative stays.
    """
    z, axis = call.args[0].detach(), call.arg(1, "dim")
    if not call.only(0) or z.ndim == 0 or z.dtype != call.value.dtype:
        return None
    along, logarithm = axis % z.ndim + 1, "log" in str(call.step.target)
    p = call.value.detach().exp() if logarithm else call.value.detach()

    def apply(block: Tensor) -> Tensor:
        if logarithm:
            return block - (block * p).sum(along, keepdim=True)
        weighted = block * p
        return weighted.addcmul_(p, weighted.sum(along, keepdim=True), value=-1)

    def adjoint(block: Tensor) -> Tensor:
        return block - p * block.sum(along, keepdim=True) if logarithm else apply(block)

    offset = call.value.detach() - apply(finite(z).unsqueeze(0))[0] if call.offsets else None
    shape = z.shape  # as `low_rank` must not hold z

    def low_rank() -> DiagonalPlusLowRank:
        units, ones = along_axes(shape, (along - 1,)), torch.ones((), dtype=p.dtype, device=p.device)
        return DiagonalPlusLowRank(units, *((ones, (-ones,), (p,)) if logarithm else (p, (-p,), (p,))))

    return one(call, apply, adjoint, offset=offset, gate=Gate(call.ref(0), None, None), flops=4 * z.numel(),
               kind="activation" if logarithm else "softmax", low_rank=low_rank)


def _clipped(call: Call, low: float | None, high: float | None, *, closed: bool = False) -> LinearNode:
    """min(max(z, low), high).  `closed`: torch's clamp passes the gradient at the bounds, hardtanh does not."""
    breaks = [-math.inf if low is None else low, math.inf if high is None else high]
    if breaks[0] > breaks[1]:  # clamp gives the upper bound then, whatever z
        return LinearNode((scaled(call, 0, 0.0),), offset=call.value.detach())
    return _pieces(call, breaks, [0.0, 1.0, 0.0], closed=closed)


def _pieces(call: Call, breaks: list[float], slopes: list, *, closed: bool = False) -> LinearNode:
    """A piecewise-linear activation: `slopes[i]` between breaks i−1 and i.

    The secant is the slope where no bound is reached.  `closed`: a value on a break belongs to the inner piece.
    """
    z, value = call.args[0].detach(), call.value.detach()
    above = [z > b for b in breaks]
    if len(breaks) == 2:
        above = [z >= breaks[0], z > breaks[1]] if closed else [z > breaks[0], z >= breaks[1]]
    pattern = sum(mask.to(torch.int8) for mask in above)
    if all(isinstance(at, float) for at in slopes) and slopes == [0.0, 1.0]:
        slope = pattern.view(torch.bool)  # the pattern itself: a slope in z's dtype is four times as large, or eight
    else:
        slope = torch.zeros_like(z)
        for piece, at in enumerate(slopes):
            slope = torch.where(pattern == piece, torch.as_tensor(at, dtype=z.dtype, device=z.device), slope)
    offset = value - slope * finite(z) if len(breaks) == 2 else None
    if offset is not None and call.policy.activation == "held" and offset.any():
        # A bound is no bias: the secant, which changes inside of its piece; within the bounds, the identity.
        slope, offset = slope_and_offset(call, z)
        if slopes == [0.0, 1.0, 0.0]:
            slope = torch.where(pattern == 1, 1, slope)
            offset = None if offset is None else torch.where(pattern == 1, 0, offset)
        return diagonal(call, slope, offset, gate=Gate(call.ref(0), None, None), kind="activation")
    edges = torch.tensor([-math.inf, *breaks, math.inf], dtype=z.dtype, device=z.device)

    def crossing(z: Tensor, direction: Tensor) -> Tensor:
        up, down = edges[pattern.long() + 1], edges[pattern.long()]
        edge = torch.where(direction > 0, up, down)
        time = ((edge - z) / direction).clamp_min(0)
        return torch.where(direction == 0, math.inf, time)

    return diagonal(call, slope, offset, gate=Gate(call.ref(0), pattern, crossing), kind="activation")
