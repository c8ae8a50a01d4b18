"""Whose code is running: the Python frames between the recorder and the capture that runs the model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import torch

_TORCH, _HERE = str(Path(torch.__file__).parent), str(Path(__file__).parent)
_INNER = tuple(str(Path(__file__).with_name(f"{name}.py"))
               for name in ("frames", "reads", "recorder", "storage", "tape"))
# From torch 2.14 on `apply` is no Python function: then it is the forward() itself that is looked for.
_FUNCTION_APPLY = getattr(getattr(torch.autograd.Function.apply, "__func__", None), "__code__", None)


def frames() -> Iterator[FrameType]:
    """The Python frames of the model's run, innermost first."""
    frame = sys._getframe(1)
    while frame is not None and _kind_of(frame.f_code.co_filename) != "end":
        yield frame
        frame = frame.f_back


def source() -> str:
    """The line of the model's own code that is running, as 'file:line'; "" where all of it is torch's."""
    for frame in frames():
        if _kind_of(frame.f_code.co_filename) == "own":
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return ""


def where() -> str:
    """The same in words."""
    return source() or "the model"


def in_function() -> bool:
    """Is the forward() of an autograd.Function running, where torch itself switches autograd off?"""
    if torch.is_grad_enabled():
        return False
    if _FUNCTION_APPLY is not None:
        return any(frame.f_code is _FUNCTION_APPLY for frame in frames())
    return any(_is_forward(frame.f_code) for frame in frames())


@cache
def _is_forward(code: CodeType) -> bool:
    """Is this the forward() of some autograd.Function?"""
    waiting = [torch.autograd.Function]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        forward = vars(kind).get("forward")
        if getattr(getattr(forward, "__func__", forward), "__code__", None) is code:
            return True
    return False


@cache
def _kind_of(filename: str) -> str:
    if filename.startswith(_HERE):
        return "ours" if filename in _INNER else "end"
    return "torch" if filename.startswith((_TORCH, "<")) else "own"
