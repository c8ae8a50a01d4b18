"""Every test starts from the same seed, on two threads, with uninitialised CPU memory poisoned by NaN.

Where pytest-xdist runs tests side by side each has one thread.
"""

from __future__ import annotations

import os

import pytest
import torch

from tolerances import RELATIVE

THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2


@pytest.fixture(autouse=True)
def _same_start(monkeypatch):
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoned(torch.Tensor.new_empty))


def _poisoned(allocate):
    """`allocate`, but what a kernel forgets to write reads as NaN."""

    def wrapper(*args, **kwargs):
        t = allocate(*args, **kwargs)
        plain = type(t) is torch.Tensor and t.device.type == "cpu" and t.layout is torch.strided
        if plain and t.is_floating_point() and not t.requires_grad:
            t.fill_(float("nan"))
        return t

    return wrapper


@pytest.fixture(params=[torch.float32, torch.float64], ids=["f32", "f64"])
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def rtol(dtype) -> float:
    """The table's relative tolerance for the test's `dtype`."""
    return RELATIVE[dtype]
