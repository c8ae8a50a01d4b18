"""Operators and what is made of them: adjoint, product, sum and multiple.  Nothing is ever multiplied out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from specxai.operators.base import CheckedProducts
from specxai.operators.operands import as_factor, check_alike, no_operator

__all__ = ["AdjointOperator", "ComposedOperator", "Cut", "LinearOperator", "ScaledOperator", "SumOperator"]


@dataclass(frozen=True)
class Cut:
    """A factorisation R = left @ right through a space of `width` dimensions (live units at a layer).

    Shapes: left (m, width), right (width, n).

    Example:
        >>> import torch
        >>> from specxai.operators import DenseOperator
        >>> cut = Cut(1, DenseOperator(torch.ones(3, 1)), DenseOperator(torch.ones(1, 2)))
        >>> (cut.left @ cut.right).shape
        (3, 2)
    """

    width: int
    left: LinearOperator
    right: LinearOperator


class LinearOperator(CheckedProducts):
    """A real (m, n) matrix known only by its products.

    Operators of equal shape, dtype and device add and subtract, real numbers scale them, and `@` applies one after
    the other; all of these are operators again.

    A subclass calls `super().__init__(shape, dtype, device)` and gives `_matmat` (n, k) -> (m, k) and `_rmatmat`
    (m, k) -> (n, k), which may assume that shape, dtype and device are right.

    Attributes:
        shape: (m, n).
        dtype: of the vectors that go in and come out.
        device: of the vectors that go in and come out.
        block_size: the most columns handed to one product, None for all at once.  An operator that knows what a
            column costs in memory sets it; it never changes the values beyond rounding.

    Example:
        >>> import torch
        >>> from specxai.operators import DenseOperator
        >>> R = DenseOperator(torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]]))
        >>> R @ torch.ones(3)
        tensor([3., 4.])
        >>> R.T @ torch.ones(2)
        tensor([1., 3., 3.])
        >>> (R @ R.T).to_dense()
        tensor([[ 5.,  2.],
                [ 2., 10.]])
        >>> (2 * R - R / 2).to_dense()
        tensor([[1.5000, 3.0000, 0.0000],
                [0.0000, 1.5000, 4.5000]])
    """

    # NumPy's numbers would otherwise take an operator for one entry of an array.
    __array_ufunc__ = None

    @property
    def T(self) -> LinearOperator:
        """The adjoint Rᵀ as an operator (n, m); `R.T.T` is `R` itself."""
        return AdjointOperator(self)

    def __matmul__(self, other: Tensor | LinearOperator) -> Tensor | LinearOperator:
        if isinstance(other, LinearOperator):
            return ComposedOperator(self, other)
        if not isinstance(other, Tensor):
            if hasattr(other, "__array__") or isinstance(other, (list, tuple)):
                raise TypeError(f"{self!r} multiplies torch tensors, got {type(other).__name__}; convert it by "
                                f"torch.as_tensor(x, dtype={self.dtype})")
            return NotImplemented
        return self.matvec(other) if other.ndim == 1 else self.matmat(other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return no_operator(self, other)
        total = SumOperator(self, other)
        # A zero would hide the cut and the rough products of the other.
        return self if other.is_zero else other if self.is_zero else total

    def __radd__(self, other: object) -> LinearOperator:
        if type(other) is int and other == 0:  # where Python's sum() begins
            return self
        return no_operator(self, other)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + -other if isinstance(other, LinearOperator) else no_operator(self, other)

    def __neg__(self) -> LinearOperator:
        return ScaledOperator(-1.0, self)

    def __mul__(self, number: float | Tensor) -> LinearOperator:
        factor = as_factor(self, number)
        return NotImplemented if factor is None else ScaledOperator(factor, self)

    __rmul__ = __mul__

    def __truediv__(self, number: float | Tensor) -> LinearOperator:
        divisor = as_factor(self, number)
        if divisor == 0:
            raise ZeroDivisionError(f"{self!r} cannot be divided by zero")
        return NotImplemented if divisor is None else ScaledOperator(1 / divisor, self)

    @property
    def is_zero(self) -> bool:
        """Is the operator known to be zero, without a product?"""
        return False

    def narrowest_cut(self) -> Cut | None:
        """The factorisation R = left @ right of least width, or None where the operator knows none."""
        return None

    def rough(self) -> LinearOperator | None:
        """The same map with cheaper products in fewer digits, for passes that only seek a subspace; None for none."""
        return None


class _Single(LinearOperator):
    """What an operator made of one other, `original`, takes over from it."""

    original: LinearOperator

    def ensure_current(self) -> None:
        self.original.ensure_current()

    def expect(self, columns: int) -> None:
        self.original.expect(columns)

    def column_cost(self, columns: int) -> float:
        return self.original.column_cost(columns)


class AdjointOperator(_Single):
    """Rᵀ (n, m) of an operator R (m, n): the two products change places.

    Example:
        >>> import torch
        >>> from specxai.operators import DenseOperator
        >>> R = DenseOperator(torch.tensor([[1.0, 2.0]]))
        >>> R.T.shape, R.T @ torch.ones(1), R.T.T is R
        ((2, 1), tensor([1., 2.]), True)
    """

    def __init__(self, original: LinearOperator) -> None:
        super().__init__(original.shape[::-1], original.dtype, original.device)
        self.original = original

    # Chunking is the original's: changing its block_size later must reach here.
    def _matmat(self, X: Tensor) -> Tensor:
        return self.original.rmatmat(X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self.original.matmat(Y)

    @property
    def input_shape(self) -> torch.Size:
        return self.original.output_shape

    @property
    def output_shape(self) -> torch.Size:
        return self.original.input_shape

    @property
    def T(self) -> LinearOperator:
        return self.original

    @property
    def flops(self) -> int:
        return self.original.flops

    @property
    def own_products(self) -> bool:
        return self.original.own_products

    @property
    def is_zero(self) -> bool:
        return self.original.is_zero

    def narrowest_cut(self) -> Cut | None:
        cut = self.original.narrowest_cut()
        return None if cut is None else Cut(cut.width, cut.right.T, cut.left.T)

    def rough(self) -> LinearOperator | None:
        cheaper = self.original.rough()
        return None if cheaper is None else cheaper.T


class _Pair(LinearOperator):
    """What an operator made of two others, `left` and `right`, takes over from both."""

    left: LinearOperator
    right: LinearOperator

    def ensure_current(self) -> None:
        self.left.ensure_current()
        self.right.ensure_current()

    def expect(self, columns: int) -> None:
        self.left.expect(columns)
        self.right.expect(columns)

    def column_cost(self, columns: int) -> float:
        """The mean of the two by their operations."""
        parts = [(part.flops, part.column_cost(columns)) for part in (self.left, self.right)]
        total = sum(flops for flops, _ in parts)
        return sum(flops * cost for flops, cost in parts) / total if total else max(cost for _, cost in parts)


class ComposedOperator(_Pair):
    """left @ right, applied one after the other and never multiplied out.

    Shapes: left (m, w), right (w, n).
    Errors: ValueError where the inner sizes, dtypes or devices differ.

    Example:
        >>> import torch
        >>> from specxai.operators import DenseOperator
        >>> L, R = DenseOperator(torch.ones(4, 2)), DenseOperator(torch.ones(2, 5))
        >>> (L @ R).narrowest_cut().width
        2
    """

    def __init__(self, left: LinearOperator, right: LinearOperator, *, block_size: int | None = None) -> None:
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"cannot compose {left!r} with {right!r}: inner sizes {left.shape[1]} != {right.shape[0]}")
        check_alike("compose", left, "with", right)
        super().__init__((left.shape[0], right.shape[1]), left.dtype, left.device, block_size=block_size)
        self.left = left
        self.right = right

    @property
    def input_shape(self) -> torch.Size:
        return self.right.input_shape

    @property
    def output_shape(self) -> torch.Size:
        return self.left.output_shape

    def _matmat(self, X: Tensor) -> Tensor:
        return self.left.matmat(self.right.matmat(X))

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self.right.rmatmat(self.left.rmatmat(Y))

    @property
    def flops(self) -> int:
        return self.left.flops + self.right.flops

    @property
    def own_products(self) -> bool:
        return self.left.own_products and self.right.own_products

    @property
    def is_zero(self) -> bool:
        return self.left.is_zero or self.right.is_zero

    def narrowest_cut(self) -> Cut:
        """The narrowest of the seam between the factors and the cuts inside them."""
        cuts = [Cut(self.left.shape[1], self.left, self.right)]
        if (cut := self.left.narrowest_cut()) is not None:
            cuts.append(Cut(cut.width, cut.left, ComposedOperator(cut.right, self.right)))
        if (cut := self.right.narrowest_cut()) is not None:
            cuts.append(Cut(cut.width, ComposedOperator(self.left, cut.left), cut.right))
        return min(cuts, key=lambda cut: cut.width)


class SumOperator(_Pair):
    """left + right, each multiplied by itself.

    It has no cut, which would be as wide as the terms' together, and no rough products: they are rough relative to the
    terms, beside which a sum that cancels may be small.

    Shapes: left, right (m, n).
    Errors: ValueError where the shapes, dtypes or devices differ.

    Example:
        >>> import torch
        >>> from specxai.operators import DenseOperator
        >>> R = DenseOperator(torch.eye(2))
        >>> (R + R).matvec(torch.ones(2))
        tensor([2., 2.])
    """

    def __init__(self, left: LinearOperator, right: LinearOperator, *, block_size: int | None = None) -> None:
        if left.shape != right.shape:
            raise ValueError(f"cannot add {left!r} to {right!r}: both must map {left.shape[1]} numbers to "
                             f"{left.shape[0]}, or both {right.shape[1]} to {right.shape[0]}")
        check_alike("add", left, "to", right)
        super().__init__(left.shape, left.dtype, left.device, block_size=block_size)
        self.left = left
        self.right = right

    @property
    def input_shape(self) -> torch.Size:
        """Of the first term that knows one beside (n,)."""
        return max(self.left.input_shape, self.right.input_shape, key=lambda shape: len(shape) != 1)

    @property
    def output_shape(self) -> torch.Size:
        """Of the first term that knows one beside (m,)."""
        return max(self.left.output_shape, self.right.output_shape, key=lambda shape: len(shape) != 1)

    def _matmat(self, X: Tensor) -> Tensor:
        return self._added(self.left.matmat(X), self.right.matmat(X))

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._added(self.left.rmatmat(Y), self.right.rmatmat(Y))

    def _added(self, one: Tensor, other: Tensor) -> Tensor:
        return one.add_(other) if self.left.own_products else one + other

    @property
    def flops(self) -> int:
        return self.left.flops + self.right.flops + self.shape[0]

    @property
    def own_products(self) -> bool:
        return True

    @property
    def is_zero(self) -> bool:
        return self.left.is_zero and self.right.is_zero


class ScaledOperator(_Single):
    """factor · original (m, n), for a finite real factor that the operator's dtype can hold.

    Errors: ValueError for any other.

    Example:
        >>> import torch
        >>> from specxai.operators import DenseOperator
        >>> (-3 * DenseOperator(torch.eye(2))).to_dense()
        tensor([[-3., -0.],
                [-0., -3.]])
    """

    def __init__(self, factor: float, original: LinearOperator, *, block_size: int | None = None) -> None:
        held = float(torch.tensor(factor, dtype=original.dtype, device="cpu"))
        if not math.isfinite(held) or (held == 0) != (factor == 0):
            raise ValueError(f"cannot scale {original!r} by {factor}: that is no finite number of {original.dtype}, or "
                             "rounds to zero there; scale by less, or cast the model or matrix to float64")
        super().__init__(original.shape, original.dtype, original.device, block_size=block_size)
        self.factor = factor
        self.original = original

    @property
    def input_shape(self) -> torch.Size:
        return self.original.input_shape

    @property
    def output_shape(self) -> torch.Size:
        return self.original.output_shape

    def _matmat(self, X: Tensor) -> Tensor:
        return self._scaled(self.original.matmat(X))

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._scaled(self.original.rmatmat(Y))

    def _scaled(self, product: Tensor) -> Tensor:
        return product.mul_(self.factor) if self.original.own_products else product * self.factor

    @property
    def flops(self) -> int:
        return self.original.flops + self.shape[0]

    @property
    def own_products(self) -> bool:
        return True

    @property
    def is_zero(self) -> bool:
        return self.factor == 0 or self.original.is_zero

    def narrowest_cut(self) -> Cut | None:
        cut = self.original.narrowest_cut()
        return None if cut is None else Cut(cut.width, ScaledOperator(self.factor, cut.left), cut.right)

    def rough(self) -> LinearOperator | None:
        cheaper = self.original.rough()
        return None if cheaper is None else ScaledOperator(self.factor, cheaper)

    def __repr__(self) -> str:
        return f"{self.factor:g} * {self.original!r}"
