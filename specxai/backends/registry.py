"""Which backends there are, which can run where, and the one for a graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specxai.backends.cuda import CudaEngine
from specxai.backends.cuda import eligible as cuda_eligible
from specxai.backends.cuda.backend import CudaBackend
from specxai.backends.engine import Backend, Engine
from specxai.backends.native import NativeEngine
from specxai.backends.native import eligible as native_eligible
from specxai.backends.products import MOST_ROOM, PlannedBackend
from specxai.backends.reference import ReferenceBackend
from specxai.backends.torch import TorchEngine
from specxai.backends.torch import eligible as torch_eligible
from specxai.graph import Graph

NAMES = ("reference", "native", "torch", "cuda")
PLAN_FROM = 16  # columns: a plan costs about as much as the reference's products with so many


def describe(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> list[tuple[str, bool, str]]:
    """(name, eligible, reason) of every backend for models of this device and dtype.

    >>> describe("cpu", torch.float16)[2]
    ('torch', False, 'sums over rows need float32 or float64, the model is torch.float16')
    """
    return [("reference", True, "plain PyTorch over whole values, every dtype and device"),
            ("native", *native_eligible(device, dtype)),
            ("torch", *torch_eligible(device, dtype)),
            ("cuda", *cuda_eligible(device, dtype))]


def choose(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs where `name` is asked for; "auto" takes native where it is eligible, else
    the reference.

    Raises ValueError for an unknown name, RuntimeError where a backend asked for by name is not eligible.

    >>> choose("auto", torch.device("cuda"), torch.float32)
    'reference'
    """
    _check(name, ("auto", *NAMES))
    able = {known: (ok, reason) for known, ok, reason in describe(device, dtype)}
    if name == "auto":
        return "native" if able["native"][0] else "reference"
    if not able[name][0]:
        raise RuntimeError(f"backend {name!r} cannot run here: {able[name][1]}; use backend='auto' or 'reference'")
    return name


def make(name: str, graph: Graph, plan_from: int = 0, max_memory: int = MOST_ROOM) -> Backend:
    """The backend of this name for one graph; fewer than `plan_from` columns are not worth its plan.

    Whoever asks for products sees to it that none holds more than `max_memory` bytes; no more is taken in advance.

    >>> import specxai
    >>> graph = specxai.linearize(torch.nn.Linear(3, 2, bias=False).eval(), torch.ones(1, 3)).graph
    >>> R = make("torch", graph).products([graph.input], [max(graph.nodes)], [])
    >>> R.matmat(torch.ones(3, 5)).shape, R.rmatmat(torch.ones(2, 5)).shape
    (torch.Size([2, 5]), torch.Size([3, 5]))

    Raises ValueError for an unknown name; whether the backend is eligible here, `choose` asks.
    """
    _check(name, NAMES)
    if name == "reference":
        return ReferenceBackend(graph)
    engine: Engine
    if name == "native":
        engine = NativeEngine(graph.dtype)
    elif name == "cuda":
        return CudaBackend(graph, CudaEngine(graph.dtype, graph.device), plan_from, max_memory)
    else:
        engine = TorchEngine(graph.dtype, graph.device)
    return PlannedBackend(graph, engine, plan_from, max_memory)


def _check(name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"unknown backend {name!r}; choose {', '.join(known)}")
