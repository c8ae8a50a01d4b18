"""Products on a GPU: by a plan, or through joined whole values where a plan would spare too little."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specxai.backends.engine import Products
from specxai.backends.products import PlannedBackend
from specxai.backends.whole.products import JoinedProducts, is_mostly_live


class CudaBackend(PlannedBackend):
    """Plans by the engine; for a decoder, whose units are nearly all live, whole values."""

    def products(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                 columns: Tensor | None = None, rows: Tensor | None = None, taps: Sequence[int] = ()) -> Products:
        if is_mostly_live(self.graph, sources, targets, held, columns, rows):
            return JoinedProducts(self.graph, sources, targets, held, columns, rows, taps)
        return super().products(sources, targets, held, columns, rows, taps)
