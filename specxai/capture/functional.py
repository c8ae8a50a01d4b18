"""What an ATen call that writes to its arguments computes, as a call that writes to nothing."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten


@cache
def written(func: OpOverload) -> tuple[tuple[int, str], ...]:
    """(position, name) of the arguments that a call writes to; positions of keyword-only ones are -1."""
    return tuple((-1 if argument.kwarg_only else position, argument.name)
                 for position, argument in enumerate(func._schema.arguments)
                 if argument.alias_info is not None and argument.alias_info.is_write)


@cache
def functional(func: OpOverload) -> OpOverload | None:
    """The overload with the arguments of `func` that returns what it writes: add.Tensor for add_.Tensor and add.out.

    None where there is no such overload.
    """
    name = func._schema.name.partition("::")[2]
    packet = getattr(getattr(torch.ops, func.namespace), name[:-1] if name.endswith("_") else name, None)
    wanted = _signature(func)
    for overload in packet.overloads() if packet is not None else ():
        candidate = getattr(packet, overload)
        if not candidate._schema.is_mutable and _signature(candidate) == wanted:
            return candidate
    return None


def _signature(func: OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in func._schema.arguments if not argument.is_out]


@cache
def is_view_in_place(func: OpOverload) -> bool:
    """Does the call change a tensor's shape and strides, and none of its values, as `transpose_` does?"""
    return torch.Tag.inplace_view in func.tags


@cache
def is_random(func: OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


@cache
def is_composite(func: OpOverload) -> bool:
    """Is the call made of other calls alone?"""
    keys = torch._C.DispatchKey
    return func.has_kernel_for_dispatch_key(keys.CompositeImplicitAutograd) and not any(
        func.has_kernel_for_dispatch_key(key) for key in (keys.CPU, keys.CUDA, keys.CompositeExplicitAutograd))


@cache
def _fillers(func: OpOverload) -> frozenset[str]:
    return frozenset(argument.name for argument in func._schema.arguments) & {"dtype", "device"}


def pinned(func: OpOverload, kwargs: dict[str, Any], result: torch.Tensor) -> dict[str, Any]:
    """Keyword arguments of a call that makes a tensor from none, with the dtype and device that it had, which otherwise
    follow torch's defaults of the moment."""
    return {**kwargs, **{name: getattr(result, name) for name in _fillers(func)}}


def argument_of(func: OpOverload, name: str, args: tuple, kwargs: dict) -> Any:
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[position] if position < len(args) else kwargs.get(name, argument.default_value)
    return None


def is_eval(func: OpOverload, args: tuple, kwargs: dict) -> bool:
    """Does a call that is random in training, dropout say, do nothing here?"""
    return False in (argument_of(func, "train", args, kwargs), argument_of(func, "training", args, kwargs))


def writes_nothing(func: OpOverload, args: tuple, kwargs: dict) -> bool:
    """Batch norm and rrelu leave their statistics and noise alone in eval mode, whatever their schemas say."""
    return not func._schema.name.endswith("_") and argument_of(func, "training", args, kwargs) is False


def is_by_value(func: OpOverload, args: tuple) -> bool:
    """Does the shape of the result depend on values?"""
    if func is aten.index.Tensor:
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.dynamic_output_shape in func.tags
