"""Capture: an nn.Module and one example become a list of ATen steps with layer names, verified against the model."""

from __future__ import annotations

from specxai.capture.captured import Captured, capture
from specxai.capture.program import Program, Ref, Step

__all__ = ["Captured", "Program", "Ref", "Step", "capture"]
