"""Products on a GPU: by a plan, or through joined whole values where a plan would spare too little."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specxai.backends.cuda.graphs import Graphs
from specxai.backends.engine import Passed, Products
from specxai.backends.products import PlannedBackend
from specxai.backends.whole.products import JoinedProducts, is_mostly_live

CAPTURED = 256 << 20  # bytes of a pass that is captured: a larger one keeps the device busy launch by launch


class CudaBackend(PlannedBackend):
    """Plans by the engine; for a decoder, whose units are nearly all live, whole values."""

    def products(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                 columns: Tensor | None = None, rows: Tensor | None = None, taps: Sequence[int] = ()) -> Products:
        if is_mostly_live(self.graph, sources, targets, held, columns, rows):
            return ReplayedProducts(self.graph, sources, targets, held, columns, rows, taps,
                                    graphs=self.engine.graphs())
        return super().products(sources, targets, held, columns, rows, taps)


class ReplayedProducts(JoinedProducts):
    """Small passes are captured at their second run, as those of plans are.

    graphs   what captures them; None for nothing
    """

    def __init__(self, *ends, graphs: Graphs | None = None, splits: bool | None = None) -> None:
        super().__init__(*ends, splits=splits)
        # Nodes that torch differentiates, one probe at a time, may wait for the device.
        self._graphs = None if any(self._graph.nodes[step].generic for step in self._path) else graphs

    def product_bytes(self, columns: int) -> int:
        """What is captured holds its own memory, beside that of a pass that is not."""
        needed = super().product_bytes(columns)
        return needed if self._graphs is None else needed + min(needed, CAPTURED)

    def matmat(self, X: Tensor, rough: bool = False) -> Tensor:
        if not self._is_small(X):
            return super().matmat(X)
        return self._graphs.run(("matmat", X.shape[1]), super().matmat, X)

    def rmatmat(self, Y: Tensor, rough: bool = False, passed: Passed | None = None) -> Tensor:
        if passed is not None or not self._is_small(Y):
            return super().rmatmat(Y, rough, passed)
        return self._graphs.run(("rmatmat", Y.shape[1]), super().rmatmat, Y)

    def _is_small(self, block: Tensor) -> bool:
        return self._graphs is not None and super().product_bytes(block.shape[1]) <= CAPTURED
