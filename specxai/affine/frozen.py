"""The witness for frozen gates: the program under autograd, with every frozen factor detached.

Eq. (14) in torch's own terms, one expression for each family of ops: what the rules make of the same ops is not used.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specxai.affine.witness import Pullback
from specxai.capture.program import Program, Ref, is_getitem, substitute
from specxai.rules import LinearNode
from specxai.rules.base import differentiating

aten = torch.ops.aten
SMOOTH = {getattr(aten, name).default for name in (
    "sigmoid", "tanh", "silu", "gelu", "elu", "softplus", "hardswish", "mish", "exp", "log", "sqrt", "rsqrt",
    "reciprocal", "erf", "selu", "celu", "sin", "cos")} | {aten.pow.Tensor_Scalar}


def frozen_pull_back(program: Program, nodes: dict[int, LinearNode], x: Tensor,
                   cotangent: Callable[[Tensor], Tensor]) -> Pullback:
    """The program's output at x, and ∇(u·f) with the frozen factors as constants.

    nodes   say where a value has gone through a non-linearity since the last weighted layer
    """
    gated: set[int] = set()
    with differentiating(), torch.autocast(x.device.type, enabled=False):  # the program has its conversions written out
        leaf = x.detach().clone().requires_grad_()
        values: list[Any] = [None] * len(program.steps)
        for step in program.steps:
            if step.kind != "call":
                values[step.index] = leaf if step.kind == "input" else program.constants[step.index]
                continue
            args, kwargs = substitute(step.args, values), substitute(dict(step.kwargs), values)
            product = operator.getitem if is_getitem(step) else _expression(step.target)
            if step.target in (aten.mul.Tensor, aten.div.Tensor):
                went = [isinstance(a, Ref) and a.index in gated for a in step.args[:2]]
                active = [isinstance(a, Ref) and a.index in program.active for a in step.args[:2]]
                floats = all(isinstance(a, Tensor) and a.is_floating_point() for a in args[:2])
                if all(active) and floats:
                    product = _quotient if step.target is aten.div.Tensor else _product(*went)
            values[step.index] = product(*args, **kwargs)
            node = nodes.get(step.index)
            if node is not None and not node.resets and (
                    node.gate is not None or any(term.input in gated for term in node.terms)):
                gated.add(step.index)
        output = values[program.output]
        gradient = None
        if output.requires_grad:
            gradient = torch.autograd.grad(output, leaf, cotangent(output.detach()), allow_unused=True)[0]
        return Pullback(output.detach(), torch.zeros_like(leaf) if gradient is None else gradient)


def _expression(target: Any) -> Callable:
    if target in SMOOTH:
        return lambda z, *args, **kwargs: _secant(target, z, *args, **kwargs)
    return target


def _secant(target: Any, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """σ(0) + h z with h = (σ(z) − σ(0)) / z frozen; σ(z) / z where σ(0) is not finite; σ itself where z is 0."""
    if not z.requires_grad:
        return target(z, *args, **kwargs)
    at_zero = target(torch.zeros_like(z), *args, **kwargs)
    at_zero = torch.where(torch.isfinite(at_zero), at_zero, 0)
    value = target(z, *args, **kwargs)
    slope = ((value - at_zero) / z).detach()
    return torch.where(z == 0, value, at_zero + torch.where(z == 0, 0, slope) * z)


def _product(left: bool, right: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The factor that is a gate is frozen; where both are, or neither is, each takes half."""
    if left != right:
        return lambda a, b: a.detach() * b if left else a * b.detach()
    return lambda a, b: (a * b.detach() + a.detach() * b) / 2


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    return a / b.detach()
