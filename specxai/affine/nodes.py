"""From a recording and its values at x to linear nodes, one a call that depends on the input.

Most nodes of a network are the same at every x: index maps, sums, products with weights.  They are made once a program
and kept in `Program.found`, as long as all that they hold are the model's own tensors.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from specxai.capture.checks import is_finite
from specxai.capture.program import Program, Step, is_getitem, references, substitute
from specxai.capture.recording import Recording
from specxai.errors import CaptureError
from specxai.rules import Call, LinearNode, linear_node
from specxai.rules.dtypes import converted
from specxai.rules.narrow import narrow_product
from specxai.rules.policy import Policy

# Whose nodes follow from shapes and plain numbers, where all tensors that they get depend on x.
_SHAPED = frozenset(f"aten.{name}" for name in (
    "view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "unflatten.int", "squeeze.dim",
    "squeeze.dims", "squeeze.default", "unsqueeze.default", "permute.default", "transpose.int", "t.default",
    "movedim.int", "select.int", "slice.Tensor", "narrow.default", "split.Tensor", "split_with_sizes.default",
    "chunk.default", "unbind.int", "expand.default", "clone.default", "contiguous.default", "alias.default",
    "neg.default", "add.Tensor", "sub.Tensor", "cat.default", "stack.default"))


def linear_nodes(captured: Recording, values: list, policy: Policy, dtype: torch.dtype, *,
                 offsets: bool = True) -> dict[int, LinearNode]:
    """step -> its node, with all numbers in one dtype.

    offsets   else nodes of which `offset_is_large` holds have none: no product reads them, and they take more memory
              than all the rest
    """
    program, nodes, kinds = captured.program, {}, {}
    memory = _memory(program)
    fixed, made_of = program.found.get(("nodes", dtype), ({}, None))
    if made_of != memory:  # a weight was given other memory, as by `weight.data = …`
        fixed = {}
        program.found["nodes", dtype] = fixed, memory
    unconverted = program.found.setdefault(("unconverted", dtype), set())
    for index in _active_calls(program):
        step, value = program.steps[index], values[index]
        if not isinstance(value, Tensor):
            continue  # a call with several results: its getitems are the nodes
        if value.is_complex():
            raise CaptureError(f"{step.layer} computes with complex numbers ({step.target}), which have no rules here; "
                               "give the model real and imaginary parts as channels")
        if not value.is_floating_point():
            continue  # indices and masks are constants of the map
        node = fixed.get(index)
        if node is None:
            origin, output = (program.steps[step.args[0].index], step.args[1]) if is_getitem(step) else (step, 0)
            args, kwargs = tuple(substitute(origin.args, values)), substitute(dict(origin.kwargs), values)
            call = Call(origin, args, kwargs, value.to(dtype), policy, program.active, output, kinds, offsets)
            node = narrow_product(call, dtype)
            if node is None:
                if index not in unconverted:
                    given = converted((args, kwargs), dtype)
                    if _same(given, (args, kwargs)):
                        unconverted.add(index)
                    else:
                        call = replace(call, args=given[0], kwargs=given[1])
                node = linear_node(call)
            if node.offset is not None and not is_finite(node.offset):
                # A masked unit: what reads it has slope 0 there, and 0 · ∞ would be NaN.
                node = replace(node, offset=torch.where(torch.isfinite(node.offset), node.offset, 0))
            if _is_fixed(program, origin, node, memory):
                fixed[index] = node
            elif not offsets and offset_is_large(node):
                node = replace(node, offset=None)
        nodes[index] = node
        kinds[index] = node.factor_kind(kinds)
    return nodes


def offset_is_large(node: LinearNode) -> bool:
    """Smooth activations, products, norms of a value's own statistics: their offsets, if they have one, are as large as
    values; those of weighted layers and fixed norms are a number a channel.
    """
    return node.curved or (node.gate is not None and node.gate.pattern is None)


def _active_calls(program: Program) -> list[int]:
    if "active calls" not in program.found:
        program.found["active calls"] = [step.index for step in program.steps
                                         if step.kind == "call" and step.index in program.active]
    return program.found["active calls"]


def _same(one: tuple, other: tuple) -> bool:
    return all(a is b for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True))


def _memory(program: Program) -> dict[int, tuple]:
    """Address of the memory -> of each constant in it, where and how it lies there."""
    found: dict[int, tuple] = {}
    for tensor in program.constants.values():
        if tensor.layout is torch.strided:
            key = tensor.untyped_storage().data_ptr()
            found[key] = (*found.get(key, ()), (tensor.storage_offset(), tensor.stride()))
    return found


def _is_fixed(program: Program, origin: Step, node: LinearNode, memory: dict[int, tuple]) -> bool:
    """Is the node the same at every x, whatever becomes of the weights' values?"""
    if node.gate is not None or node.generic or node.curved:
        return False
    if str(origin.target) in _SHAPED and node.offset is None:
        return program.active.issuperset(references((origin.args, dict(origin.kwargs))))
    if node.fully_connected is None or len(node.terms) != 1:
        return False
    held = [node.fully_connected.weight] if node.offset is None else [node.fully_connected.weight, node.offset]
    return all(tensor.untyped_storage().data_ptr() in memory for tensor in held)
