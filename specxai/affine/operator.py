"""Operators between steps of the linear graph: J, L, R, the bypass, and the two halves of a cut."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from specxai._blocks import as_integer
from specxai._once import once
from specxai.affine.snapshot import Snapshot
from specxai.backends import Backend
from specxai.backends.engine import Passed, Products
from specxai.backends.reference import WholeValues
from specxai.backends.used import note
from specxai.graph.cut import LiveCut, narrowest
from specxai.graph.ends import check_ends
from specxai.operators import Cut, LinearOperator
from specxai.operators.later import is_checked_later
from specxai.precision import full_precision

MOST_COLUMNS = 4096  # of one product, whatever the memory


class LocalOperator(LinearOperator):
    """The linear map from the units of some steps to the units of others.

    sources, targets   steps of the program; their units are flattened and put one after the other
    held               steps whose value is kept at zero
    rows, columns      live units of targets and sources, None for all
    taps               steps between whose cotangents `pull_back` passes on
    max_memory         bytes that one product may hold, with its tables but not the copies of weights; wider blocks run
                       in chunks of `block_size` columns
    dtype              of the blocks given and returned; between, products run in the graph's
    snapshot           what products ask whether the weights are still those that the graph was made from

    Products may run in several threads.

    `input_shape` and `output_shape` are those of the step where all units of one step are the source, or the target.

    Raises TypeError or ValueError as `check_ends` does.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()).eval()
    >>> J = specxai.linearize(net, torch.ones(1, 1, 5, 5)).jacobian
    >>> J.shape, J.input_shape, J.output_shape, (J @ torch.ones(25, 4)).shape
    ((18, 25), torch.Size([1, 1, 5, 5]), torch.Size([1, 2, 3, 3]), torch.Size([18, 4]))
    """

    def __init__(self, backend: Backend, sources: Sequence[int], targets: Sequence[int], *, held: Sequence[int] = (),
                 dtype: torch.dtype, max_memory: int, columns: Tensor | None = None, rows: Tensor | None = None,
                 taps: Sequence[int] = (), snapshot: Snapshot | None = None) -> None:
        self._snapshot, self._seconds = snapshot, 0.0  # that the last product took
        check_ends(backend.graph, sources, targets, held, columns, rows)
        self._backend, self._graph = backend, backend.graph
        self._sources, self._targets, self._held = list(sources), list(targets), list(held)
        self._columns, self._rows, self.max_memory = columns, rows, max_memory
        self._taps, self._expected = list(taps), None
        m = self._units(self._targets) if rows is None else len(rows)
        n = self._units(self._sources) if columns is None else len(columns)
        super().__init__((m, n), dtype, self._graph.device)

    @once
    def _products(self) -> Products:
        self._check()
        with full_precision(self.device):
            made = self._backend.products(self._sources, self._targets, self._held, self._columns, self._rows,
                                          self._taps)
        if self._expected is not None:
            made.expect(*self._expected)
        return made

    def expect(self, columns: int, rough: bool = False) -> None:
        """So many columns will be multiplied: where it pays, wide middles become one matrix a position from the first
        product on, and what was multiplied before decides nothing.

        rough   all of them in rough products, for which matrices of few digits do

        Raises TypeError for what is no whole number, ValueError for one below zero.
        """
        count = as_integer(columns)
        if count is None:
            raise TypeError(f"expect takes a number of columns; got {columns!r}")
        if count < 0:
            raise ValueError(f"expect takes how many columns will be multiplied, at least 0; got {count}")
        self._expected = count if self._expected is None else max(self._expected[0], count), rough
        if "_products" in vars(self):
            self._products.expect(*self._expected)

    @once
    def reference(self) -> WholeValues:
        """The reference's products, through whole values."""
        return WholeValues(self._graph, self._sources, self._targets, self._held, self._columns, self._rows,
                           self._taps)

    def _for(self, columns: int) -> Products:
        """What runs so many columns: the backend's products, the reference's where few are not worth a plan."""
        if columns < self._backend.plan_from:
            if "_products" not in self.__dict__ or self._bytes(self._products, columns) > self.max_memory:
                return self.reference
        elif self._backend.plan_from and self._bytes(self._products, 1) > self.max_memory:
            return self.reference
        return self._products

    def _bytes(self, products: Products, columns: int) -> int:
        """Bytes of a product, with the block and the result in the operator's dtype too where the graph has another."""
        outside = 0 if self._graph.dtype is self.dtype else sum(self.shape) * self.dtype.itemsize
        return products.product_bytes(columns) + outside * columns

    @property
    def product_bytes(self) -> int:
        """Bytes that the product with one column takes."""
        return self._bytes(self._for(1), 1)

    @LinearOperator.block_size.getter
    def block_size(self) -> int:
        """The most columns of one product: what `max_memory` holds, or less where it was set lower."""
        return self._chunk(MOST_COLUMNS)

    def _chunk(self, columns: int) -> int:
        most = min(columns, MOST_COLUMNS if self._block_size is None else self._block_size)
        needed = partial(self._bytes, self._for(columns))
        if needed(most) <= self.max_memory:
            return most
        # The largest count that fits: bytes never fall as columns are added.
        return max(1, bisect_right(range(1, most + 1), self.max_memory, key=needed))

    @property
    def input_shape(self) -> torch.Size:
        return self._shape_of(self._sources, self._columns, self.shape[1])

    @property
    def output_shape(self) -> torch.Size:
        return self._shape_of(self._targets, self._rows, self.shape[0])

    def _shape_of(self, steps: Sequence[int], chosen: Tensor | None, units: int) -> torch.Size:
        """A step's, (units,) where they are not all of its, or not those of one step."""
        return self._graph.shapes[steps[0]] if len(steps) == 1 and chosen is None else torch.Size((units,))

    @property
    def flops(self) -> int:
        """Operations of one column's product as the backend runs it, a multiply-add counted as two."""
        return self._products.flops + self.shape[0]

    @property
    def flops_run(self) -> int:
        """The same as products run by now: with matrices in place of wide middles, where those pay."""
        return self._products.flops_run + self.shape[0]

    @property
    def precision(self) -> str:
        """In which numbers products are, in words; those of the reference where no other was made."""
        made = self._products if "_products" in vars(self) else self.reference
        return made.precision

    def column_cost(self, columns: int) -> float:
        return self._products.column_cost(columns)

    def bytes_moved(self, columns: int) -> int:
        """Bytes that the stages of one product of so many columns read and write: the floor that memory sets."""
        return self._products.bytes_moved(columns)

    @property
    def own_products(self) -> bool:
        return True

    def narrowest_cut(self) -> Cut | None:
        """The factorisation through the fewest live units, found as a minimum vertex cut of the graph."""
        found = self._cut
        if found is None or found.width >= min(self.shape):
            return None
        common = {"dtype": self.dtype, "max_memory": self.max_memory, "snapshot": self._snapshot}
        right = LocalOperator(self._backend, self._sources, found.steps, held=self._held, columns=self._columns,
                              rows=found.units, **common)
        left = LocalOperator(self._backend, found.steps, self._targets, held=self._held, columns=found.units,
                             rows=self._rows, **common)
        return Cut(found.width, left, right)

    @once
    def _cut(self) -> LiveCut | None:
        return narrowest(self._graph, self.live_units(), self._sources, self._targets, self._held)

    def live_units(self) -> dict[int, Tensor]:
        """The live units of the sources and of every step between: step -> mask (units,)."""
        self._check()
        with full_precision(self.device):
            return self._backend.live_units(self._sources, self._targets, self._held, self._columns, self._rows)

    def costs(self) -> list[tuple[int, int, int]]:
        """(step, live units, operations of one column) of weighted nodes; empty where all units are computed."""
        return self._products.costs()

    def opaque_steps(self) -> list[int]:
        """Steps that a plan runs through whole values, by the reference's terms."""
        return self._products.opaque

    def other_engines(self) -> list[tuple[int, str, str]]:
        """(step, engine, reason) of stages that the backend leaves to another engine."""
        return self._products.instead

    def rough(self) -> LinearOperator | None:
        return RoughOperator(self) if self._products.has_rough else None

    def pull_back(self, Y: Tensor, passed: Passed, rough: bool = False) -> Tensor:
        """Rᵀ Y (n, k) of Y (m, k); on the way `passed` is called with each of the steps `taps` and its cotangents,
        (units, k) in the graph's dtype, which it must not keep.

        In a plan a unit that no source reaches has none: zero.  `rough` allows fewer digits where `rough()` has such
        products.

        Raises ValueError for more columns than `block_size`.
        """
        if Y.ndim != 2 or Y.shape[0] != self.shape[0]:
            raise ValueError(f"Y has shape {tuple(Y.shape)}; an operator {self.shape} takes ({self.shape[0]}, k)")
        if Y.shape[1] > self._chunk(Y.shape[1]):
            raise ValueError(f"Y has {Y.shape[1]} columns, max_memory={self.max_memory:,} holds "
                             f"{self.block_size}; give them in blocks of block_size")
        return self._run("rmatmat", Y, rough, passed)

    def ensure_current(self) -> None:
        if self._snapshot is not None:
            self._snapshot.check(full=True)

    def _matmat(self, X: Tensor, rough: bool = False) -> Tensor:
        return self._run("matmat", X, rough)

    def _rmatmat(self, Y: Tensor, rough: bool = False) -> Tensor:
        return self._run("rmatmat", Y, rough)

    def _run(self, product: str, block: Tensor, rough: bool, *passed: Passed) -> Tensor:
        self._check(self._seconds)
        start = time.perf_counter()
        with full_precision(self.device):
            products = self._for(block.shape[1])
            note(products.backend)
            result = getattr(products, product)(block.to(self._graph.dtype), rough, *passed).to(self.dtype)
        self._seconds = time.perf_counter() - start
        return result

    def _check(self, seconds: float = 0.0) -> None:
        if self._snapshot is not None:
            self._snapshot.check(seconds=seconds, waits=self.device.type == "cpu" or not is_checked_later())

    def __reduce__(self):
        raise TypeError("an operator of a network cannot be pickled: it runs on the model's tensors in this process; "
                        "send the model and x, and call specxai.linearize(model, x) there (or send .to_dense())")

    def _units(self, steps: Sequence[int]) -> int:
        return sum(self._graph.shapes[s].numel() for s in steps)


class RoughOperator(LinearOperator):
    """A `LocalOperator` whose products its backend computes in fewer digits."""

    def __init__(self, full: LocalOperator) -> None:
        super().__init__(full.shape, full.dtype, full.device, block_size=full.block_size)
        self._full = full

    def ensure_current(self) -> None:
        self._full.ensure_current()

    def expect(self, columns: int) -> None:
        self._full.expect(columns)

    @property
    def own_products(self) -> bool:
        return self._full.own_products

    def _matmat(self, X: Tensor) -> Tensor:
        return self._full._matmat(X, rough=True)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._full._rmatmat(Y, rough=True)

    @property
    def flops(self) -> int:
        return self._full.flops

    def column_cost(self, columns: int) -> float:
        return self._full._products.column_cost(columns, rough=True)
