"""Layer names: for the duration of a run, hooks look up which step each module's output is.

The hooks come after the user's own and return nothing, so they see what a module finally returns and change nothing.
Those of other threads are left alone.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from specxai.capture.outputs import leaves, subscripts
from specxai.capture.recorder import Recorder


@dataclass(eq=False)
class Call:
    """One call of a module: the `number`-th of its path, from 1."""

    path: str
    number: int


@dataclass
class Calls:
    """What a run called.

    count   calls by module path
    ended   (call, subscripts, step) of every tensor that a call returned, in order: '' for a lone one, '[0]'
    """

    count: Counter[str] = field(default_factory=Counter)
    ended: list[tuple[Call, str, int]] = field(default_factory=list)

    def name(self, call: Call) -> str:
        """The layer name of a call."""
        return f"{call.path}#{call.number}" if self.count[call.path] > 1 else call.path


@contextmanager
def followed(model: nn.Module, recorder: Recorder) -> Iterator[Calls]:
    """While open, the recorder knows the module calls that are under way, and the result the tensors they returned."""
    calls, thread, stack = Calls(), threading.get_ident(), recorder.tape.calls

    def begin_of(path: str):
        def begin(module, inputs):
            if threading.get_ident() == thread:
                calls.count[path] += 1
                stack.append(Call(path, calls.count[path]))

        return begin

    def end_of(path: str):
        def end(module, inputs, output):
            if threading.get_ident() != thread:
                return
            call = stack.pop()
            for keys, tensor in leaves(output):
                if tensor.is_floating_point() and recorder.knows(tensor):
                    calls.ended.append((call, subscripts(keys), recorder.step_of(tensor)))

        return end

    handles = []
    try:
        for path, module in model.named_modules():
            if path and not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(begin_of(path), prepend=True))
                # Called, with no output, where forward() raises, which whoever called it may catch.
                handles.append(module.register_forward_hook(end_of(path), always_call=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def module_names(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """id of each submodule -> its dotted names; a module registered twice has two."""
    names: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if path:
            names.setdefault(id(module), []).append(path)
    return {key: tuple(paths) for key, paths in names.items()}
