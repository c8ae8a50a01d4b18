"""The generic node: an op without a rule, differentiated by torch alone at its value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specxai.capture.program import references, substitute
from specxai.rules.base import Gate, LinearNode, Site, Term


def generic(site: Site) -> LinearNode:
    """One term per input that depends on x: vjp of the op, and jvp as the vjp's own adjoint.

    A transposed vjp needs no forward mode, which fused attention, cdist and recurrent layers do not have.  Probes run
    one by one: correct for every op, and slow.  Treated as smooth: its offset is f(z) − Σ J_i z_i.
    """
    inputs = sorted({i for i in references((site.step.args, dict(site.step.kwargs))) if i in site.active})
    values = _values(site, inputs)
    terms = tuple(_term(site, inputs, values, which) for which in range(len(inputs)) if
                  values[which].is_floating_point())
    offset = site.value.detach().clone()
    for term in terms:
        offset -= term.apply(values[inputs.index(term.input)].detach().unsqueeze(0))[0]
    gate = Gate(terms[0].input, None, None) if terms else None
    return LinearNode(terms, offset=offset, gate=gate, generic=str(site.step.target).removesuffix(".default"))


def _values(site: Site, inputs: list[int]) -> list[Any]:
    found: dict[int, Any] = {}

    def walk(template, value):
        from specxai.capture.program import Ref

        if isinstance(template, Ref):
            found[template.index] = value
        elif isinstance(template, (list, tuple)):
            for t, v in zip(template, value, strict=True):
                walk(t, v)
        elif isinstance(template, dict):
            for key in template:
                walk(template[key], value[key])

    walk(site.step.args, site.args)
    walk(dict(site.step.kwargs), site.kwargs)
    return [found[i] for i in inputs]


def _term(site: Site, inputs: list[int], values: list[Any], which: int) -> Term:
    table: dict[int, Any] = {}

    class Lookup(dict):
        def __missing__(self, key):
            return table[key]

    z = values[which].detach()

    def call(point: Tensor) -> Tensor:
        now = Lookup({index: value for index, value in zip(inputs, values, strict=True)})
        now[inputs[which]] = point
        args, kwargs = _fill(site.step.args, site.args, now), _fill(dict(site.step.kwargs), site.kwargs, now)
        result = site.step.target(*args, **kwargs)
        return result[site.output] if isinstance(result, (list, tuple)) else result

    def adjoint(block: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = z.clone().requires_grad_()
            value = call(leaf)
            if not value.requires_grad:
                return block.new_zeros(block.shape[0], *z.shape)
            rows = [torch.autograd.grad(value, leaf, row, retain_graph=True, allow_unused=True)[0] for row in block]
        return torch.stack([torch.zeros_like(z) if row is None else row for row in rows])

    def apply(block: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = z.clone().requires_grad_()
            value = call(leaf)
            if not value.requires_grad:
                return block.new_zeros(block.shape[0], *value.shape)
            dummy = torch.zeros_like(value).requires_grad_()
            pulled = torch.autograd.grad(value, leaf, dummy, create_graph=True, allow_unused=True)[0]
            if pulled is None or not pulled.requires_grad:
                return block.new_zeros(block.shape[0], *value.shape)
            rows = [torch.autograd.grad(pulled, dummy, row, retain_graph=True, allow_unused=True)[0] for row in block]
        return torch.stack([torch.zeros_like(value.detach()) if row is None else row for row in rows])

    return Term(inputs[which], apply, adjoint, flops=4 * site.value.numel())


def _fill(template, value, now):
    """The arguments as they were, with the points in `now` in the places that depend on x."""
    from specxai.capture.program import Ref

    if isinstance(template, Ref):
        return now[template.index] if dict.__contains__(now, template.index) else value
    if isinstance(template, (list, tuple)):
        return [_fill(t, v, now) for t, v in zip(template, value, strict=True)]
    if isinstance(template, dict):
        return {key: _fill(template[key], value[key], now) for key in template}
    return value
