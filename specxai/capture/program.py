"""The captured program: a flat list of ATen steps, run one after the other."""

from __future__ import annotations

import dataclasses
import difflib
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specxai._once import once
from specxai.errors import LayerError


@dataclass(frozen=True)
class Ref:
    """Stands in a step's arguments for the value of step `index`."""

    index: int


@dataclass(frozen=True)
class Step:
    """One value of the program.

    kind      "input", "constant" or "call"
    target    the ATen overload (or `operator.getitem`) of a call
    args      its arguments, values of other steps as `Ref`
    layer     name of the innermost module call it belongs to, else its own node name
    source    file and line in the model's code, where known
    """

    index: int
    name: str
    kind: str
    target: Any = None
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    layer: str = ""
    source: str = ""


@dataclass(frozen=True)
class Program:
    """Steps in execution order, the constants, and where each layer's output is.

    layers        layer name -> step of the layer's output; a module called n > 1 times has names `relu#1` … `relu#n`,
                  one that returns several tensors `lstm[0]`, `lstm[1][0]` or `block[hidden]`
    modules       id of a module object -> its dotted names
    active        steps whose value depends on the input
    parts         dotted name of a module -> its layer names
    specialised   lines of the model's code that made a decision, or left torch, with a value that depends on the input
    sides         steps of the constants that are side inputs of the call -> which tensor of these
    """

    steps: tuple[Step, ...]
    constants: Mapping[int, Tensor]
    input: int
    output: int
    layers: Mapping[str, int]
    modules: Mapping[int, tuple[str, ...]]
    active: frozenset[int]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    specialised: tuple[str, ...] = ()
    sides: Mapping[int, int] = field(default_factory=dict)

    def with_sides(self, tensors: Sequence[Tensor]) -> Program:
        """The program with other values of its side inputs."""
        if not self.sides:
            return self
        given = {step: tensors[number] for step, number in self.sides.items()}
        return dataclasses.replace(self, constants={**self.constants, **given})

    def run(self, x: Tensor, replace: Mapping[int, Tensor] | None = None) -> list[Any]:
        """Every step's value at x; `replace` puts given values in the place of computed ones.

        A value nobody needs any more is still kept: linearisation reads most of them.
        """
        replace = replace or {}
        values: list[Any] = [None] * len(self.steps)
        with torch.autocast(x.device.type, enabled=False):  # the conversions that it made are steps
            for step in self.steps:
                if step.index in replace:
                    values[step.index] = replace[step.index]
                elif step.kind == "input":
                    values[step.index] = x.contiguous()
                elif step.kind == "constant":
                    values[step.index] = self.constants[step.index]
                else:
                    places = self._places[step.index]
                    if places is None:
                        args, kwargs = substitute(step.args, values), substitute(dict(step.kwargs), values)
                    else:
                        args, kwargs = list(step.args), step.kwargs
                        for place, index in places:
                            args[place] = values[index]
                    values[step.index] = step.target(*args, **kwargs)
        return values

    @once
    def _places(self) -> list[list[tuple[int, int]] | None]:
        """Of each step the (place, step) of the values among its positional arguments; None where some lie deeper."""
        return [None if [*references([one for one in (*step.args, step.kwargs) if not isinstance(one, Ref)])]
                else [(place, one.index) for place, one in enumerate(step.args) if isinstance(one, Ref)]
                for step in self.steps]

    @once
    def found(self) -> dict[Any, Any]:
        """What was found of this program that holds at every input; whoever finds it names it."""
        return {}

    def layer(self, layer: str | torch.nn.Module, first: bool = False) -> tuple[str, int]:
        """(name, step) of a layer given by dotted name or by module object.  Of a layer that returns one tensor among
        other things it is that, of several tensors the first where that is asked for.

        Raises LayerError, naming near misses or, for a module with several outputs or calls, their names.
        """
        if isinstance(layer, torch.nn.Module):
            names = [n for n in self.modules.get(id(layer), ()) if n in self.parts]
            if not names:
                raise LayerError(f"this {type(layer).__name__} is not a layer of the captured model (or its output is "
                                 "no tensor that depends on the input); give a module of the same model object")
            layer = names[0]
        if not isinstance(layer, str):
            raise LayerError(f"layer={layer!r} is of type {type(layer).__name__}: layers are named by strings, such as "
                             f"{next(iter(self.layers), '0')!r}, or given as the module itself")
        if layer in self.layers:
            return layer, self.layers[layer]
        if names := self.parts.get(layer):
            if (first or len(names) == 1) and names[0].startswith(f"{layer}["):
                return names[0], self.layers[names[0]]
            many = "returns several tensors" if any(n.endswith("]") for n in names) else f"is called {len(names)} times"
            raise LayerError(f"layer {layer!r} {many}; name one of {', '.join(names)}")
        if not self.layers:
            raise LayerError(f"no layer {layer!r}: this model has no submodules to split at; wrap it, as in "
                             "torch.nn.Sequential(model), whose layer '0' is the model")
        near = difflib.get_close_matches(str(layer), self.layers, n=5) or list(self.layers)[:8]
        raise LayerError(f"no layer {layer!r} in this model; did you mean {', '.join(near)}? "
                         f"It has {len(self.layers)}: `.layers`, or --layer list on the command line, shows them")


def substitute(template: Any, values: list[Any]) -> Any:
    """The argument template with every `Ref` replaced by its value."""
    if isinstance(template, Ref):
        return values[template.index]
    if isinstance(template, (list, tuple)):
        return type(template)(substitute(item, values) for item in template)
    if isinstance(template, dict):
        return {key: substitute(item, values) for key, item in template.items()}
    return template


def references(template: Any) -> Iterator[int]:
    """Steps referred to by an argument template."""
    if isinstance(template, Ref):
        yield template.index
    elif isinstance(template, (list, tuple)):
        for item in template:
            yield from references(item)
    elif isinstance(template, dict):
        yield from references(list(template.values()))


def is_getitem(step: Step) -> bool:
    return step.target is operator.getitem
