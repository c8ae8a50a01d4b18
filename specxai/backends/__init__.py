"""Backends run the linear nodes of one input on blocks of probes.  Each says why it can or cannot."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from specxai.backends import native as _native
from specxai.backends.reference import Graph

__all__ = ["Graph", "choose", "describe"]

NAMES = ("reference", "native")
PLAN_FROM = 16  # columns: a plan costs about as much as the reference's products with so many


def describe(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> list[tuple[str, bool, str]]:
    """(name, eligible, reason) of every backend for models of this device and dtype."""
    return [("reference", True, "plain PyTorch, every dtype and device"), ("native", *_native.eligible(device, dtype))]


def choose(name: str, device: torch.device, dtype: torch.dtype) -> tuple[str, Callable[..., Graph]]:
    """The backend's name and what makes its graph; "auto" takes native where it is eligible and columns are many.

    Raises ValueError for an unknown name, RuntimeError where a backend asked for by name is not eligible.
    """
    if name not in ("auto", *NAMES):
        raise ValueError(f"unknown backend {name!r}; choose auto, {', '.join(NAMES)}")
    if name == "reference":
        return name, Graph
    ok, reason = _native.eligible(device, dtype)
    if ok:
        return "native", partial(_native.NativeGraph, plan_from=PLAN_FROM if name == "auto" else 0)
    if name == "native":
        raise RuntimeError(f"backend 'native' cannot run here: {reason}; use backend='auto' or 'reference'")
    return "reference", Graph
