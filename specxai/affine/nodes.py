"""From a recording and its values at x to linear nodes, one a call that depends on the input."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from specxai.capture.program import is_getitem, substitute
from specxai.capture.recording import Recording
from specxai.errors import CaptureError
from specxai.rules import Call, LinearNode, linear_node
from specxai.rules.dtypes import converted
from specxai.rules.narrow import narrow_product
from specxai.rules.policy import Policy


def linear_nodes(captured: Recording, values: list, policy: Policy, dtype: torch.dtype) -> dict[int, LinearNode]:
    """step -> its node, with all numbers in one dtype."""
    program, nodes, kinds = captured.program, {}, {}
    for step in program.steps:
        if step.index not in program.active or step.kind != "call":
            continue
        value, origin, output = values[step.index], step, 0
        if not isinstance(value, Tensor):
            continue  # a call with several results: its getitems are the nodes
        if value.is_complex():
            raise CaptureError(f"{step.layer} computes with complex numbers ({step.target}), which have no rules here; "
                               "give the model real and imaginary parts as channels")
        if is_getitem(step):
            origin, output = program.steps[step.args[0].index], step.args[1]
        if not value.is_floating_point():
            continue  # indices and masks are constants of the map
        given = tuple(substitute(origin.args, values)), substitute(dict(origin.kwargs), values)
        call = Call(origin, *given, converted(value, dtype), policy, program.active, output, kinds)
        node = narrow_product(call, dtype)
        if node is None:
            args, kwargs = converted(given, dtype)
            node = linear_node(replace(call, args=args, kwargs=kwargs))
        if node.offset is not None and not torch.isfinite(node.offset).all():
            # A masked unit: what reads it has slope 0 there, and 0 · ∞ would be NaN.
            node = replace(node, offset=torch.where(torch.isfinite(node.offset), node.offset, 0))
        nodes[step.index] = node
        kinds[step.index] = node.factor_kind(kinds)
    return nodes
