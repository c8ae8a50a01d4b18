"""Passes as CUDA graphs: a plan's launches, captured once for a width and replayed as one.

A pass is some hundred small launches, and the host takes longer to make them than small layers take to run.  What a
captured pass reads and writes stays where it was, so that it has a block and a result of its own; columns are copied in
and results out.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import RLock
from typing import Protocol

import torch
from torch import Tensor

Pass = Callable[[Tensor], Tensor]
KEPT = 4  # passes of an operator: two directions, rough and not
ALIGNED = 16  # bytes: kernels differ with what their addresses are a multiple of


class Graph(Protocol):
    """Work that runs again on the same memory."""

    def replay(self) -> None: ...


Capture = Callable[[Pass, Tensor], tuple[Graph, Tensor]]  # (pass, its block) -> (graph, its result)


@dataclass
class Captured:
    block: Tensor
    result: Tensor
    graph: Graph


class Graphs:
    """The captured passes of one operator, whose products are to be made on one stream.

    The first pass of a key runs as it is, which compiles kernels and uploads tables; the second is captured.  A pass
    that cannot be is run as it is from then on, with a warning that says why.

    capture   how; for tests
    """

    kept = KEPT

    def __init__(self, device: torch.device, capture: Capture | None = None) -> None:
        self._capture = capture or Pool(device).capture
        self._seen: set[Hashable] = set()
        self._kept: OrderedDict[Hashable, Captured] = OrderedDict()
        self._refused = False
        self._lock = RLock()  # a pass has one block: copying in, replaying and copying out are one step
        self.capturing = False

    def run(self, key: Hashable, made: Pass, block: Tensor) -> Tensor:
        """`made(block)`; of equal keys the passes do the same with blocks of one shape."""
        with self._lock:
            if self._refused or key not in self._seen:
                self._seen.add(key)
                # As the captured pass's own block will lie: else it would compile kernels while it is captured.
                return made(block if block.data_ptr() % ALIGNED == 0 else block.clone())
            kept = self._kept.get(key) or self._new(key, made, block)
            if kept is None:
                return made(block)
            self._kept.move_to_end(key)
            kept.block.copy_(block)
            kept.graph.replay()
            return kept.result.clone()

    def _new(self, key: Hashable, made: Pass, block: Tensor) -> Captured | None:
        while len(self._kept) >= KEPT:
            self._kept.popitem(last=False)
        own = torch.empty_like(block)
        self.capturing = True
        try:
            graph, result = self._capture(made, own)
        except RuntimeError as error:
            self._refused = True
            warnings.warn(f"a pass cannot be captured as a CUDA graph, and runs launch by launch: {error}",
                          RuntimeWarning, stacklevel=2)
            return None
        finally:
            self.capturing = False
        self._kept[key] = Captured(own, result, graph)
        return self._kept[key]


class Pool:
    """One memory pool for the graphs of an operator: they run one after the other, so what one holds on its way serves
    the next."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._handle = device, None

    def capture(self, made: Pass, block: Tensor) -> tuple[Graph, Tensor]:
        with torch.cuda.device(self._device):
            self._handle = self._handle or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._handle, capture_error_mode="thread_local"):
                result = made(block)
        return graph, result
