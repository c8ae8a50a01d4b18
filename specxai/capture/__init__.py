"""Capture: an nn.Module and one example become a list of ATen steps with layer names, verified against the model.

`specxai.capture(model, example)` is `specxai.capture.capture(model, example)`.
"""

from __future__ import annotations

from specxai._callable import make_callable
from specxai.capture.captured import Captured, capture, recall
from specxai.capture.program import Program, Ref, Step

__all__ = ["Captured", "Program", "Ref", "Step", "capture", "recall"]

make_callable(__name__, capture)
