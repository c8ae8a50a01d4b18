"""From an nn.Module to a Program, through torch.export(strict=False)."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from specxai._garbage import uncollected
from specxai.capture.names import MARK, Calls, marked, module_names
from specxai.capture.program import Program, Ref, Step, references
from specxai.errors import CaptureError

# Read the shape of their argument only.
_SHAPE_ONLY = {getattr(torch.ops.aten, name).default for name in (
    "ones_like", "zeros_like", "full_like", "empty_like", "new_ones", "new_zeros", "new_full", "new_empty")}
Ends = dict[fx.Node, tuple[str, int]]  # (module path, number of the call) that ends there
_SET_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled


def export_program(model: nn.Module, example: Tensor) -> Program:
    """Trace `model` at `example` into ATen steps with layer names.

    Raises CaptureError, with torch's own reason, where the model cannot be traced: branches on data, `.item()`,
    NumPy inside.
    """
    try:
        with _quiet(), uncollected():
            exported, calls, ends = _traced(model, example, every=False) or _traced(model, example, every=True)
    except Exception as error:
        raise CaptureError(
            f"torch.export could not trace {type(model).__name__}: {first_line(error)}. Branches on tensor values, "
            "`.item()` and NumPy code inside forward() are the usual causes; pass the part of the model without them"
        ) from error
    return _translate(exported, calls, ends, module_names(model))


def _traced(model: nn.Module, example: Tensor, every: bool) -> tuple[ExportedProgram, Calls, Ends] | None:
    """The decomposed graph, the calls, and the nodes where the plain ones end.

    None where that is not known, so that every call needs a mark: torch forgets whose an operator is inside no_grad and
    autocast regions and in slices of a Sequential, and writes what a module did to a view back to the whole behind it.
    """
    with marked(model, every) as calls:
        exported = torch.export.export(model, (example,), strict=False)
        if not every and any(isinstance(child, fx.GraphModule) for child in exported.graph_module.children()):
            return None
        _stop_gradients(exported.graph_module)
        exported = exported.run_decompositions({})
    last = {_call_of(node): node for node in exported.graph.nodes}
    ends = {last[call]: call for call in calls.plain if call in last}
    shapes = {call: getattr(node.meta.get("val"), "shape", None) for node, call in ends.items()}
    return (exported, calls, ends) if shapes == calls.plain else None


def _call_of(node: fx.Node) -> tuple[str, int] | None:
    """(path, number) of the innermost module call that the node belongs to."""
    stack = node.meta.get("nn_module_stack") if node.op == "call_function" else None
    if not stack:
        return None
    key, (path, _) = next(reversed(stack.items()))
    repeat = re.search(r"@(\d+)$", key)  # from the second call on
    return path, int(repeat[1]) + 1 if repeat else 1


def first_line(error: Exception) -> str:
    """What went wrong, without torch's further pages."""
    return str(error).strip().split("\n")[0][:300].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, and none of the dumps that torch logs and prints before it raises: the error says enough."""
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _stop_gradients(module: fx.GraphModule) -> None:
    """Make a no_grad region's results stop the gradient: decomposition would silently make it differentiable."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not _SET_GRAD or node.args[0] is not False:
            continue
        for user in list(node.users):
            with module.graph.inserting_after(user):
                stopped = module.graph.call_function(torch.ops.aten.detach.default, (user,))
            stopped.meta = dict(user.meta)
            user.replace_all_uses_with(stopped, delete_user_cb=lambda use, keep=stopped: use is not keep)
    module.recompile()


def _translate(exported: ExportedProgram, calls: Calls, ends: Ends, modules: dict[int, tuple[str, ...]]) -> Program:
    held = {**exported.state_dict, **exported.constants}
    sources = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    steps: list[Step] = []
    constants: dict[int, Tensor] = {}
    where: dict[fx.Node, int] = {}
    layers: dict[str, int] = {}
    paths: list[str] = []
    inputs: list[int] = []
    outputs: list[int] = []
    floating: set[int] = set()

    def template(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return Ref(where[value])
        if isinstance(value, (list, tuple)):
            items = [template(item) for item in value]
            return tuple(items) if type(value) is tuple else items
        if isinstance(value, dict):
            return {key: template(item) for key, item in value.items()}
        return value

    order: list[tuple[str, int]] = []  # (layer name, number of steps when its call ended)

    def ended(path: str, call: int, step: int) -> None:
        name = calls.name(path, call)
        layers[name] = step
        order.append((name, len(steps)))

    for node in exported.graph.nodes:
        if node.op == "output":
            # Beside the user's outputs there may be writes to the input and to buffers.
            specs = exported.graph_signature.output_specs
            outputs = list(references([template(value) for value, spec in zip(node.args[0], specs, strict=True)
                                       if spec.kind is OutputKind.USER_OUTPUT]))
            continue
        if node.target is MARK:
            source, name = node.args
            where[node] = where[source]
            path, _, number = name.rpartition("#")
            ended(path, int(number), where[source])
            continue
        index = len(steps)
        where[node] = index
        if _floating(node.meta.get("val")):
            floating.add(index)
        stack = list(node.meta.get("nn_module_stack", {}).values())
        paths.append(re.sub(r"@\d+$", "", stack[-1][0]) if stack else "")
        if node.op == "placeholder":
            spec = sources[node.name]
            if spec.kind is InputKind.USER_INPUT:
                inputs.append(index)
                steps.append(Step(index, node.name, "input"))
            else:
                constants[index] = held[spec.target]
                steps.append(Step(index, node.name, "constant"))
        elif node.op == "get_attr":
            constants[index] = getattr(exported.graph_module, node.target)
            steps.append(Step(index, node.name, "constant"))
        else:
            steps.append(Step(index, node.name, "call", node.target, template(tuple(node.args)),
                              template(dict(node.kwargs)), source=_source(node)))
            if node in ends:
                ended(*ends[node], index)
    _name_steps(steps, paths, order)
    active = _active(steps, inputs, floating)
    outputs = [index for index in outputs if index in active]
    if len(outputs) != 1:
        raise CaptureError(f"the model returns {len(outputs)} floating-point tensors that depend on its input; SpecXAI "
                           "explains one. Wrap the model in a module whose forward() returns the tensor of interest")
    return Program(tuple(steps), constants, inputs[0], outputs[0],
                   {name: index for name, index in layers.items() if index in active}, modules, frozenset(active))


def _name_steps(steps: list[Step], paths: list[str], order: list[tuple[str, int]]) -> None:
    """Give each call the layer name of its module call: the first mark of its path at or after the step."""
    for position, step in enumerate(steps):
        if step.kind != "call":
            continue
        path = paths[position]
        names = (name for name, end in order
                 if end > position and path and (name == path or name.rpartition("#")[0] == path))
        steps[position] = Step(step.index, step.name, step.kind, step.target, step.args, step.kwargs,
                               next(names, path or step.name), step.source)


def _active(steps: list[Step], inputs: list[int], floating: set[int]) -> set[int]:
    """Steps that change continuously with the input: not masks and indices, nor what is made of their shapes."""
    active = set(inputs)
    for step in steps:
        if step.index not in floating or step.target in _SHAPE_ONLY:
            continue
        if any(index in active for index in references((step.args, dict(step.kwargs)))):
            active.add(step.index)
    return active


def _floating(value: Any) -> bool:
    """Is the (traced) value of a node a floating-point tensor, or several with one among them?"""
    if isinstance(value, (list, tuple)):
        return any(map(_floating, value))
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _source(node: fx.Node) -> str:
    """The line of the model's own code that made the node, as 'file:line'."""
    found = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return f"{found[-1][0]}:{found[-1][1]}" if found else ""
