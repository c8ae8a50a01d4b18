"""From an nn.Module to a Program: one recorded run, cut down to what the output needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher

from specxai.capture.feed import Feed
from specxai.capture.names import Calls, followed, module_names
from specxai.capture.outputs import Selector, leaves, select
from specxai.capture.program import Program, Ref, Step, references
from specxai.capture.reads import Reads
from specxai.capture.recorder import Recorder
from specxai.capture.tape import Tape
from specxai.errors import CaptureError


def trace(model: nn.Module, x: Tensor, selector: Selector = None, feed: Feed | None = None) -> tuple[Program, Selector]:
    """The program of one eager run at x, called as `feed` says, and what names its output where `selector` is None.

    Raises CaptureError where the output is none that can be explained, and whatever the model itself raises.
    """
    names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    recorder, feed = Recorder(names), (feed or Feed()).copied()
    with torch.inference_mode(False), torch.enable_grad():
        # Not the leaf itself: an in-place first layer may write to it.
        given = x.detach().clone().requires_grad_().clone()
        recorder.start(given)
        sides = {recorder.give(tensor): number for number, tensor in enumerate(feed.tensors())}
        # The decompositions in Python take recurrent layers and upsampling apart.
        try:
            with followed(model, recorder) as calls, enable_python_dispatcher(), Reads(recorder.read), recorder:
                output = feed.call(model, given)
        finally:
            recorder.finish()
        selector, step = _output(recorder, output, selector, type(model).__name__)
    return _program(recorder.tape, calls, step, module_names(model), sides), selector


def _output(recorder: Recorder, output: object, selector: Selector, name: str) -> tuple[Selector, int]:
    """(what names the tensor that is explained, its step)."""
    if selector is None:
        found = [(keys, tensor) for keys, tensor in leaves(output)]
        if not found:
            raise CaptureError(f"{name} returns {type(output).__name__}, which holds no tensor to explain")
        active = [(keys, tensor) for keys, tensor in found
                  if tensor.is_floating_point() and recorder.knows(tensor) and _step(recorder, tensor) is not None]
        if not active and any(tensor.is_complex() for _, tensor in found):
            raise CaptureError(f"{name} returns complex numbers (they have no rules here); give the model "
                               "real and imaginary parts as channels")
        if not active:
            raise CaptureError(f"{name} returns {len(found)} tensor{'s' * (len(found) > 1)}, and no floating-point "
                               f"tensor that depends on its input{_lost(recorder.tape)}")
        selector, tensor = next((pair for pair in active if pair[1].requires_grad), active[0])
    else:
        tensor = select(output, selector)
        if not recorder.knows(tensor) or _step(recorder, tensor) is None:
            raise CaptureError(f"output={selector!r} does not depend on the model's input{_lost(recorder.tape)}")
    if not tensor.requires_grad:
        raise CaptureError(f"no gradient reaches the output of {name}: forward() runs under no_grad or inference_mode, "
                           "or detaches its result, so that its derivative is zero by torch's rules; capture the model "
                           "without that")
    return selector, _step(recorder, tensor)


def _step(recorder: Recorder, tensor: Tensor) -> int | None:
    step = recorder.step_of(tensor)
    return step if step in recorder.tape.active else None


def _lost(tape: Tape) -> str:
    lines = ", ".join(tape.specialised)
    return f"; values left torch, or decided what runs, at {lines}" if lines else ""


def _program(tape: Tape, calls: Calls, output: int, modules: dict[int, tuple[str, ...]],
             sides: dict[int, int]) -> Program:
    """What the output needs, numbered anew, with the names of layers."""
    needed = _ancestors(tape.steps, output)
    if drawn := [where for index, where in tape.random.items() if index in needed]:
        raise CaptureError(f"randomness in forward(): {drawn[0]}; a random function has no fixed map: take it out, or "
                           "draw once and keep that in a buffer")
    where = {old: new for new, old in enumerate(sorted(needed))}
    steps = tuple(_renumbered(tape, calls, old, where) for old in where)
    layers: dict[str, int] = {}
    parts: dict[str, tuple[str, ...]] = {}
    for call, subscript, step in calls.ended:
        if step not in where or step not in tape.active:
            continue
        name = calls.name(call)
        layer = name + subscript
        while layer in layers:  # a path of the model that reads like the number of a call
            layer += "'"
        layers[layer] = where[step]
        for path in {call.path, name}:
            parts[path] = (*parts.get(path, ()), layer)
    return Program(steps, {where[old]: tensor for old, tensor in tape.constants.items() if old in where}, where[0],
                   where[output], layers, modules, frozenset(where[old] for old in tape.active if old in where),
                   parts, tuple(tape.specialised),
                   {where[old]: number for old, number in sides.items() if old in where})


def _ancestors(steps: list[Step], output: int) -> set[int]:
    """The steps that the output is made of, and the input."""
    needed, left = {0, output}, [output]
    while left:
        step = steps[left.pop()]
        for index in references((step.args, step.kwargs)):
            if index not in needed:
                needed.add(index)
                left.append(index)
    return needed


def _renumbered(tape: Tape, calls: Calls, old: int, where: dict[int, int]) -> Step:
    step, owner = tape.steps[old], tape.owners[old]
    layer = "" if step.kind != "call" else calls.name(owner) if owner else step.name
    return Step(where[old], step.name, step.kind, step.target, _moved(step.args, where), _moved(step.kwargs, where),
                layer, step.source)


def _moved(template, where: dict[int, int]):
    if isinstance(template, Ref):
        return Ref(where[template.index])
    if isinstance(template, (list, tuple)):
        return type(template)(_moved(item, where) for item in template)
    if isinstance(template, dict):
        return {key: _moved(item, where) for key, item in template.items()}
    return template
