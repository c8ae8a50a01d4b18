"""Linear operators R of shape (m, n), known by their products R X and Rᵀ Y.

J, L and R of an affine map are never built as matrices; everything above this module (solvers, certificates, the
spectral layer) sees only the interface below.  A block of k vectors is a matrix whose columns are the vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specxai._blocks import identity_blocks, require_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from scipy.sparse.linalg import LinearOperator as ScipyOperator

__all__ = ["AdjointOperator", "ComposedOperator", "Cut", "DenseOperator", "LinearOperator"]


@dataclass(frozen=True)
class Cut:
    """A factorisation R = left @ right through a space of `width` dimensions (live units at a layer).

    Shapes: left (m, width), right (width, n).
    """

    width: int
    left: LinearOperator
    right: LinearOperator


class LinearOperator(ABC):
    """A real (m, n) matrix known only by its products.

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
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        block_size: int | None = None,
    ) -> None:
        m, n = (int(size) for size in shape)
        if m < 0 or n < 0:
            raise ValueError(f"shape must hold two sizes that are not negative, got {tuple(shape)}")
        if not dtype.is_floating_point:
            raise ValueError(f"a linear operator needs a real floating dtype, got {dtype}; cast the tensor first")
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be at least 1, or None for all columns at once; got {block_size}")
        self.shape = (m, n)
        self.dtype = dtype
        self.device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0", as tensors report it
        self.block_size = block_size

    @property
    def input_shape(self) -> torch.Size:
        """The shape that a vector of n numbers is flattened from, (n,) where the operator knows no other."""
        return torch.Size(self.shape[1:])

    @property
    def output_shape(self) -> torch.Size:
        """The shape that a vector of m numbers is flattened from, (m,) where the operator knows no other."""
        return torch.Size(self.shape[:1])

    def ensure_current(self) -> None:  # noqa: B027  (most are made from nothing that changes)
        """Raise StaleError where what the operator was made from has changed since; solvers ask before and after."""

    @abstractmethod
    def _matmat(self, X: Tensor) -> Tensor:
        """R X for X (n, k); the result is (m, k)."""

    @abstractmethod
    def _rmatmat(self, Y: Tensor) -> Tensor:
        """Rᵀ Y for Y (m, k); the result is (n, k)."""

    def matmat(self, X: Tensor) -> Tensor:
        """R X.

        Shapes: X (n, k) -> (m, k).
        Errors: ValueError where X has another number of rows, dtype or device than the operator.
        """
        X = self._checked(X, rows=self.shape[1], ndim=2, name="X")
        return self._in_blocks(self._matmat, X, self.shape[0])

    def rmatmat(self, Y: Tensor) -> Tensor:
        """Rᵀ Y.

        Shapes: Y (m, k) -> (n, k).
        Errors: ValueError where Y has another number of rows, dtype or device than the operator.
        """
        Y = self._checked(Y, rows=self.shape[0], ndim=2, name="Y")
        return self._in_blocks(self._rmatmat, Y, self.shape[1])

    def matvec(self, x: Tensor) -> Tensor:
        """R x.

        Shapes: x (n,) -> (m,).
        Errors: ValueError where x has another length, dtype or device than the operator.
        """
        x = self._checked(x, rows=self.shape[1], ndim=1, name="x")
        return self._in_blocks(self._matmat, x[:, None], self.shape[0])[:, 0]

    def rmatvec(self, y: Tensor) -> Tensor:
        """Rᵀ y.

        Shapes: y (m,) -> (n,).
        Errors: ValueError where y has another length, dtype or device than the operator.
        """
        y = self._checked(y, rows=self.shape[0], ndim=1, name="y")
        return self._in_blocks(self._rmatmat, y[:, None], self.shape[1])[:, 0]

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

    def to_dense(self) -> Tensor:
        """The matrix (m, n) itself, by products with identity blocks over the smaller side.

        It holds m·n numbers: meant for small operators and for tests.
        """
        m, n = self.shape
        require_memory(m * n * self.dtype.itemsize, self.device, f"the dense matrix {m} x {n}",
                       "use its products, matmat and rmatmat, instead")
        dense = torch.empty(m, n, dtype=self.dtype, device=self.device)
        for start, stop, block in identity_blocks(min(m, n), self.dtype, self.device):
            if n <= m:
                dense[:, start:stop] = self.matmat(block)
            else:
                dense[start:stop] = self.rmatmat(block).T
        return dense

    def to_scipy(self) -> ScipyOperator:
        """This operator for SciPy's solvers: the same products on NumPy arrays.

        Example:
            >>> import torch
            >>> from scipy.sparse.linalg import svds
            >>> R = DenseOperator(torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64)))
            >>> [round(float(value), 6) for value in sorted(svds(R.to_scipy(), k=2, return_singular_vectors=False))]
            [7.0, 8.0]
        """
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        def on_arrays(product: Callable[[Tensor], Tensor]):
            def apply(array):
                # SciPy hands over whatever dtype and strides its solver works in.
                block = torch.from_numpy(array.copy()).to(self.device, self.dtype)
                return product(block.reshape(block.shape[0], -1)).reshape(-1, *block.shape[1:]).cpu().numpy()

            return apply

        forward, adjoint = on_arrays(self.matmat), on_arrays(self.rmatmat)
        return ScipyOperator(
            shape=self.shape,
            matvec=forward,
            rmatvec=adjoint,
            matmat=forward,
            rmatmat=adjoint,
            dtype=torch.empty(0, dtype=self.dtype).numpy().dtype,
        )

    @property
    def flops(self) -> int:
        """Floating-point operations of one column's product, a multiply-add counted as two."""
        return 2 * self.shape[0] * self.shape[1]

    def column_cost(self, columns: int) -> float:
        """What a column of a product of so many takes, as a multiple of its operations at the processor's peak.

        Solvers choose their blocks by it; only ratios matter.
        """
        return max(1.0, 16 / columns)

    @property
    def own_products(self) -> bool:
        """Is every product a new tensor, which shares no memory with its input or another product?

        A caller may then overwrite it.  Where this is False, whoever keeps a product beyond the next one must copy it.
        """
        return False

    def narrowest_cut(self) -> Cut | None:
        """The factorisation R = left @ right of least width, or None where the operator knows none."""
        return None

    def rough(self) -> LinearOperator | None:
        """The same map with cheaper products in fewer digits, for passes that only seek a subspace; None for none."""
        return None

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]}, {dtype}, {self.device})"

    def _checked(self, block: Tensor, *, rows: int, ndim: int, name: str) -> Tensor:
        """The block as products take it, `plain`."""
        wanted = f"({rows},)" if ndim == 1 else f"({rows}, k)"
        if not isinstance(block, Tensor):
            raise TypeError(f"{name} must be a torch tensor {wanted}, got {type(block).__name__}")
        if block.ndim != ndim or block.shape[0] != rows:
            raise ValueError(
                f"{name} must have shape {wanted}, got {tuple(block.shape)}; "
                f"{self!r} takes flattened vectors as columns"
            )
        if block.dtype != self.dtype:
            raise ValueError(f"{name} is {block.dtype} but {self!r} works in {self.dtype}; cast with .to({self.dtype})")
        if block.device != self.device:
            raise ValueError(f"{name} is on {block.device} but {self!r} is on {self.device}; move one of them")
        if block.layout is not torch.strided:
            raise TypeError(f"{name} is a tensor of layout {block.layout}; pass {name}.to_dense()")
        return plain(block)

    def _in_blocks(self, product: Callable[[Tensor], Tensor], block: Tensor, rows: int) -> Tensor:
        columns = block.shape[1]
        if columns == 0 or 0 in self.shape:
            return torch.zeros(rows, columns, dtype=self.dtype, device=self.device)
        width = self._chunk(columns)
        if columns <= width:
            return product(block)
        result = torch.empty(rows, columns, dtype=self.dtype, device=self.device)
        for start in range(0, columns, width):
            stop = min(start + width, columns)
            result[:, start:stop] = product(block[:, start:stop])
        return result

    def _chunk(self, columns: int) -> int:
        """How many of so many columns one product takes."""
        return columns if self.block_size is None else self.block_size


def plain(block: Tensor) -> Tensor:
    """The same numbers in a tensor that kernels and autograd take: without a graph, nor a lazy sign, nor the marks of
    inference mode.  It may share the memory of `block`.

    >>> plain(torch.tensor([1 + 2j]).conj().imag).is_neg()
    False
    """
    # A conjugate's imaginary part says that its numbers are to be negated: whoever reads the memory would miss it.
    block = block.detach().resolve_conj().resolve_neg()
    if block.is_inference():
        with torch.inference_mode(False):
            return block.clone()
    return block


class DenseOperator(LinearOperator):
    """A matrix (m, n) held as a tensor.

    Example:
        >>> import torch
        >>> DenseOperator(torch.zeros(2, 5))
        DenseOperator(2 x 5, float32, cpu)
    """

    def __init__(self, matrix: Tensor, *, block_size: int | None = None) -> None:
        if matrix.ndim != 2:
            raise ValueError(f"a dense operator needs a matrix (m, n), got shape {tuple(matrix.shape)}")
        super().__init__(tuple(matrix.shape), matrix.dtype, matrix.device, block_size=block_size)
        self.matrix = matrix.detach()  # no copy: whoever holds the matrix may change it

    def _matmat(self, X: Tensor) -> Tensor:
        return self.matrix @ X

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self.matrix.mT @ Y


class ComposedOperator(LinearOperator):
    """left @ right, applied one after the other and never multiplied out.

    Shapes: left (m, w), right (w, n).
    Errors: ValueError where the inner sizes, dtypes or devices differ.

    Example:
        >>> import torch
        >>> L, R = DenseOperator(torch.ones(4, 2)), DenseOperator(torch.ones(2, 5))
        >>> (L @ R).narrowest_cut().width
        2
    """

    def __init__(self, left: LinearOperator, right: LinearOperator, *, block_size: int | None = None) -> None:
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"cannot compose {left!r} with {right!r}: inner sizes {left.shape[1]} != {right.shape[0]}")
        if left.dtype != right.dtype or left.device != right.device:
            raise ValueError(f"cannot compose {left!r} with {right!r}: dtype and device must be the same")
        super().__init__((left.shape[0], right.shape[1]), left.dtype, left.device, block_size=block_size)
        self.left = left
        self.right = right

    @property
    def input_shape(self) -> torch.Size:
        return self.right.input_shape

    @property
    def output_shape(self) -> torch.Size:
        return self.left.output_shape

    def ensure_current(self) -> None:
        self.left.ensure_current()
        self.right.ensure_current()

    def _matmat(self, X: Tensor) -> Tensor:
        return self.left.matmat(self.right.matmat(X))

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self.right.rmatmat(self.left.rmatmat(Y))

    @property
    def flops(self) -> int:
        return self.left.flops + self.right.flops

    def column_cost(self, columns: int) -> float:
        return max(self.left.column_cost(columns), self.right.column_cost(columns))

    @property
    def own_products(self) -> bool:
        return self.left.own_products and self.right.own_products

    def narrowest_cut(self) -> Cut:
        """The narrowest of the seam between the factors and the cuts inside them."""
        cuts = [Cut(self.left.shape[1], self.left, self.right)]
        if (cut := self.left.narrowest_cut()) is not None:
            cuts.append(Cut(cut.width, cut.left, ComposedOperator(cut.right, self.right)))
        if (cut := self.right.narrowest_cut()) is not None:
            cuts.append(Cut(cut.width, ComposedOperator(self.left, cut.left), cut.right))
        return min(cuts, key=lambda cut: cut.width)


class AdjointOperator(LinearOperator):
    """Rᵀ (n, m) of an operator R (m, n): the two products change places."""

    def __init__(self, original: LinearOperator) -> None:
        super().__init__(original.shape[::-1], original.dtype, original.device)
        self.original = original

    def ensure_current(self) -> None:
        self.original.ensure_current()

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

    def column_cost(self, columns: int) -> float:
        return self.original.column_cost(columns)

    @property
    def own_products(self) -> bool:
        return self.original.own_products

    def narrowest_cut(self) -> Cut | None:
        cut = self.original.narrowest_cut()
        return None if cut is None else Cut(cut.width, cut.right.T, cut.left.T)


