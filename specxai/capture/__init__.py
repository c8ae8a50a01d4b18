"""Capture: an nn.Module and one example become a list of ATen steps with layer names, verified against the model.

`specxai.capture(model, example)` is `specxai.capture.capture(model, example)`.  A captured model knows its affine maps:
it is made above the recorder, in `specxai.affine.captured`, which this door opens when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from specxai._callable import make_callable
from specxai.capture.program import Program, Ref, Step

if TYPE_CHECKING:
    from specxai.affine.captured import Captured, capture

_EXPORTS = {"Captured": "specxai.affine.captured", "capture": "specxai.affine.captured"}
__all__ = ["Captured", "Program", "Ref", "Step", "capture"]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'specxai.capture' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


make_callable(__name__, "capture")
