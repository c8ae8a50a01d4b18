"""The GPU engine: plans by the Triton kernels of `specxai.kernels`, on an NVIDIA GPU."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from specxai.backends.cuda.engine import CudaEngine

__all__ = ["CudaEngine", "eligible"]

CAPABILITY = (8, 0)  # from which on there are tensor cores for float32 and asynchronous copies


def eligible(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[bool, str]:
    """(can the engine run here, why or why not)."""
    if dtype not in (torch.float32, torch.float64):
        return False, f"the kernels take float32 and float64, the model is {dtype}"
    if find_spec("triton") is None:
        return False, "Triton is not installed: pip install 'specxai[triton]'"
    device = torch.device(device)
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return True, "Triton's interpreter on the CPU, for tests of the kernels"
    if device.type != "cuda":
        return False, f"the kernels run on an NVIDIA GPU, the model is on {device}"
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return False, "PyTorch finds no CUDA device"
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        return False, f"{torch.cuda.get_device_name(device)} has compute capability {found[0]}.{found[1]}, below 8.0"
    return True, f"Triton kernels on {torch.cuda.get_device_name(device)}; not measured yet, so not chosen by auto"
