"""The generic node: an op without a rule, differentiated by torch alone at its value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from specxai.capture.program import Ref, references
from specxai.errors import CaptureError
from specxai.operators import plain
from specxai.rules.base import Call, Gate, LinearNode, Term, differentiating, finite

ROWS = 256  # of a Jacobian at once


def generic(call: Call) -> LinearNode:
    """One term per input that depends on x: vjp of the op, and jvp as the vjp's own adjoint.

    A transposed vjp needs no forward mode, which fused attention, cdist and recurrent layers do not have.  Probes run
    one by one: correct for every op, and slow.  Treated as smooth: its offset is f(z) − Σ J_i z_i.
    """
    template = (call.step.args, dict(call.step.kwargs))
    # Weights made in inference mode are nothing that autograd can save.
    call = replace(call, **{name: tree_map_only(Tensor, plain, getattr(call, name)) for name in ("args", "kwargs")})
    values = dict(_pairs(template, (call.args, call.kwargs)))
    inputs = sorted({i for i in references(template) if i in call.active and values[i].is_floating_point()})
    terms = tuple(_term(call, template, i, values[i].detach()) for i in inputs)
    name = str(call.step.target).removesuffix(".default")
    offset = call.value.detach().clone()
    try:
        for term in terms:
            offset -= term.apply(finite(values[term.input].detach()).unsqueeze(0))[0]
    except (RuntimeError, NotImplementedError) as error:
        raise CaptureError(f"{call.step.layer}: {name} has no rule here and torch cannot differentiate it "
                           f"({str(error).splitlines()[0]}); replace it by differentiable operations") from error
    gate = Gate(inputs[0], None, None) if inputs else None
    return LinearNode(terms, offset=offset, gate=gate, generic=name)


def _term(call: Call, template: Any, index: int, z: Tensor) -> Term:
    def again() -> tuple[Tensor, Tensor]:
        """A fresh leaf in the place of value `index`, and the op's result at it."""
        leaf = z.clone(memory_format=torch.contiguous_format).requires_grad_()
        args, kwargs = _with(template, (call.args, call.kwargs), index, leaf)
        result = call.step.target(*args, **kwargs)
        return leaf, result[call.output] if isinstance(result, (list, tuple)) else result

    def rows(value: Tensor | None, leaf: Tensor, block: Tensor, shape: torch.Size) -> Tensor:
        """Each row of the block pulled from `value` back to `leaf`; zero where nothing connects them.

        The rows are made contiguous: torch's backward of batch norm is wrong for some strides.
        """
        if value is None or not value.requires_grad:
            return block.new_zeros(block.shape[0], *shape)
        pulled = [torch.autograd.grad(value, leaf, row.contiguous(), retain_graph=True, allow_unused=True)[0]
                  for row in block]
        return torch.stack([block.new_zeros(shape) if row is None else row for row in pulled])

    def adjoint(block: Tensor) -> Tensor:
        with differentiating():
            leaf, value = again()
            return rows(value, leaf, block, z.shape).detach()

    def apply(block: Tensor) -> Tensor:
        with differentiating():
            leaf, value = again()
            dummy = torch.zeros(value.shape, dtype=value.dtype, device=value.device).requires_grad_()
            pulled = None
            if value.requires_grad:
                pulled = torch.autograd.grad(value, leaf, dummy, create_graph=True, allow_unused=True)[0]
            try:
                pushed = rows(pulled, dummy, block, value.shape).detach()
            except (RuntimeError, NotImplementedError):  # no second derivative
                return by_rows(block)
        # The second derivative may be NaN where the first is 0: of std at a constant, of a norm at 0.
        return by_rows(block) if torch.isfinite(block).all() and not torch.isfinite(pushed).all() else pushed

    def by_rows(block: Tensor) -> Tensor:
        """The Jacobian itself, some rows at a time."""
        size, shape = call.value.numel(), call.value.shape
        parts = []
        for start in range(0, size, ROWS):
            unit = torch.zeros(min(ROWS, size - start), size, dtype=z.dtype, device=z.device)
            unit.diagonal(start).fill_(1)
            parts.append(block.flatten(1) @ adjoint(unit.reshape(-1, *shape)).flatten(1).mT)
        return torch.cat(parts, 1).reshape(block.shape[0], *shape)

    return Term(index, apply, adjoint, flops=4 * call.value.numel())


def _pairs(template: Any, value: Any):
    """(step, value) of every reference in an argument template."""
    if isinstance(template, Ref):
        yield template.index, value
    elif isinstance(template, (list, tuple)):
        for t, v in zip(template, value, strict=True):
            yield from _pairs(t, v)
    elif isinstance(template, dict):
        for key in template:
            yield from _pairs(template[key], value[key])


def _with(template: Any, value: Any, index: int, point: Tensor) -> Any:
    """The argument values, with `point` wherever the template refers to step `index`."""
    if isinstance(template, Ref):
        if template.index == index:
            return point
        # Autograd cannot save what was made in inference mode.
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
    if isinstance(template, (list, tuple)):
        return type(template)(_with(t, v, index, point) for t, v in zip(template, value, strict=True))
    if isinstance(template, dict):
        return {key: _with(template[key], value[key], index, point) for key in template}
    return value
