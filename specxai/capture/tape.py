"""The tape: the steps recorded so far, and how each depends on the input."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specxai.capture.frames import source, where
from specxai.capture.functional import is_eval, is_random, pinned
from specxai.capture.program import Ref, Step, references

aten = torch.ops.aten
# The same values in the same order, whatever the strides: a view of values that are contiguous in one run only.
_RESHAPES = {aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default, aten.reshape.default}
# Read the shape of their argument only.
_SHAPE_ONLY = {getattr(aten, name).default for name in (
    "ones_like", "zeros_like", "full_like", "empty_like", "new_ones", "new_zeros", "new_full", "new_empty",
    "new_empty_strided", "rand_like", "randn_like")}
# Memory with no values yet.
_EMPTY = {aten.empty.memory_format: aten.zeros.default, aten.empty_like.default: aten.zeros_like.default,
          aten.new_empty.default: aten.new_zeros.default}


class Tape:
    """Steps in the order of the run.

    steps        so far
    constants    step -> tensor
    active       steps that change continuously with the input: not masks and indices, nor what is made of shapes
    varying      steps that depend on the input in any way
    detached     active steps that no gradient reaches
    random       step -> what draws it, and where
    specialised  lines of the model where a value that depends on the input decided something, in their order
    calls        the module calls that are under way;  owners  step -> the innermost of them
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.constants: dict[int, Tensor] = {}
        self.active: set[int] = set()
        self.varying: set[int] = set()
        self.detached: set[int] = set()
        self.random: dict[int, str] = {}
        self.specialised: dict[str, None] = {}
        self.calls: list[Any] = []
        self.owners: list[Any] = []
        self._used: dict[str, int] = {}  # how often each name was
        self._stopped: dict[int, int] = {}

    def specialise(self, *steps: int) -> None:
        """What depends on the input decides something beside the values: the program holds where that is the same."""
        if not self.varying.isdisjoint(steps):
            self.specialised[where()] = None

    def stopped(self, step: int) -> int:
        """The same value with its gradient stopped, made where the value is, not where that is first read."""
        if step not in self._stopped:
            made = self._stopped[step] = self.emit(aten.detach.default, (Ref(step),))
            self.detached.add(made)
            self.owners[made] = self.owners[step]
            self.steps[made] = replace(self.steps[made], source=self.steps[step].source)
        return self._stopped[step]

    def call(self, func, args: tuple, kwargs: dict, result: Any) -> int:
        """Append a call of the model's, in the form that holds in other runs too."""
        if func in _RESHAPES:
            func, args = aten.reshape.default, (args[0], list(args[1]))
        func = _EMPTY.get(func, func)
        used = list(references((args, kwargs)))
        if not used and isinstance(result, Tensor):
            kwargs = pinned(func, kwargs, result)
        step = self.emit(func, args, kwargs, value=result)
        if is_random(func) and not is_eval(func, args, kwargs):
            self.draws(step, func)
        return step

    def draws(self, step: int, func) -> None:
        """The step's values are random."""
        self.random[step] = f"{func} at {where()}"

    def emit(self, func, args: tuple, kwargs: dict | None = None, value: Any = None) -> int:
        """Append a call as it is.  Without its value, its result is floating where an argument is."""
        kwargs = kwargs or {}
        used = list(references((args, kwargs)))
        name = "getitem" if func is operator.getitem else func._schema.name.partition("::")[2]
        step = self.append(name, "call", func, args, kwargs, source())
        if func in _SHAPE_ONLY:
            return step
        if any(index in self.varying for index in used):
            self.varying.add(step)
        live = [index for index in used if index in self.active]
        if live and (value is None or _floating(value)):
            self.active.add(step)
            if self.detached.issuperset(live):
                self.detached.add(step)
        return step

    def append(self, name: str, kind: str, func=None, args=(), kwargs=None, origin: str = "") -> int:
        count = self._used[name] = self._used.get(name, -1) + 1
        index = len(self.steps)
        self.steps.append(Step(index, f"{name}_{count}" if count else name, kind, func, args, kwargs or {}, "", origin))
        self.owners.append(self.calls[-1] if self.calls else None)
        return index


def _floating(value: Any) -> bool:
    """Is the value a floating-point tensor, or several with one among them?"""
    if isinstance(value, (list, tuple)):
        return any(map(_floating, value))
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
