"""Products of a matrix: what a block must be, how many columns at once, and what is built from products alone.

A block of k vectors is a matrix whose columns are the vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specxai._blocks import as_integer, identity_blocks, require_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from scipy.sparse.linalg import LinearOperator as ScipyOperator

__all__ = ["CheckedProducts", "plain"]


class CheckedProducts(ABC):
    """R X and Rᵀ Y for blocks of the right shape, dtype and device, which `_matmat` and `_rmatmat` may assume.

    What it is made of, and how a subclass is written, `LinearOperator` says.
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
        self.shape = (m, n)
        self.dtype = dtype
        self.device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0", as tensors report it
        self.block_size = block_size

    @property
    def block_size(self) -> int | None:
        """The most columns handed to one product, None for all at once.

        Errors: TypeError for what is no integer, ValueError below 1.
        """
        return self._block_size

    @block_size.setter
    def block_size(self, columns: int | None) -> None:
        count = None if columns is None else as_integer(columns)
        if columns is not None and count is None:
            raise TypeError(f"block_size is a number of columns, or None for all at once; got {columns!r}")
        if count is not None and count < 1:
            raise ValueError(f"block_size must be at least 1, or None for all columns at once; got {count}")
        self._block_size = count

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

    def expect(self, columns: int) -> None:  # noqa: B027  (most have nothing to prepare)
        """So many columns will be multiplied: whatever that pays for may be prepared.  Solvers say it first."""

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

        NumPy has no bfloat16: such an operator takes and gives float32, of which it keeps 8 bits.

        Errors: TypeError for complex arrays.

        Example:
            >>> import torch
            >>> from scipy.sparse.linalg import svds
            >>> from specxai.operators import DenseOperator
            >>> R = DenseOperator(torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64)))
            >>> [round(float(value), 6) for value in sorted(svds(R.to_scipy(), k=2, return_singular_vectors=False))]
            [7.0, 8.0]
        """
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        outside = torch.float32 if self.dtype is torch.bfloat16 else self.dtype
        kind = torch.empty(0, dtype=outside, device="cpu").numpy().dtype

        def on_arrays(product: Callable[[Tensor], Tensor]):
            def apply(array):
                if array.dtype.kind == "c":
                    raise TypeError(f"{self!r} is real and takes no {array.dtype} array; apply it to array.real and to "
                                    "array.imag")
                # SciPy hands over whatever dtype and strides its solver works in.
                block = torch.from_numpy(array.astype(kind, order="C")).to(self.device, self.dtype)
                result = product(block) if block.ndim == 2 else product(block[:, None])[:, 0]
                return result.to("cpu", outside).numpy()

            return apply

        forward, adjoint = on_arrays(self.matmat), on_arrays(self.rmatmat)
        return ScipyOperator(
            shape=self.shape,
            matvec=forward,
            rmatvec=adjoint,
            matmat=forward,
            rmatmat=adjoint,
            dtype=kind,
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
        return columns if self._block_size is None else self._block_size


def plain(block: Tensor) -> Tensor:
    """The same numbers, of the same shape, in a tensor that kernels and autograd take: without a graph, nor a lazy
    sign, nor the marks of inference mode.  It may share the memory of `block`.

    >>> plain(torch.tensor([1 + 2j]).conj().imag).is_neg()
    False
    """
    # A conjugate's imaginary part says that its numbers are to be negated: whoever reads the memory would miss it.
    block = block.detach().resolve_conj().resolve_neg()
    if block.is_inference():
        with torch.inference_mode(False):
            return block.clone()
    return block
