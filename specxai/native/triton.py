"""Where the Triton kernels of whole values run."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch


def has_kernels(device: torch.device) -> bool:
    """Are there Triton kernels for tensors of this device?  On a CPU in Triton's interpreter, for tests."""
    here = device.type == "cuda" or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")
    return here and find_spec("triton") is not None


def kernel_of(name: str, device: torch.device) -> Callable | None:
    """The last part of "module.function" in `specxai.kernels`, or both where they have one name, where it runs."""
    if not has_kernels(device):
        return None
    module, _, function = name.partition(".")
    return getattr(import_module(f"specxai.kernels.{module}"), function or module)
