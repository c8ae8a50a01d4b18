"""A matrix that is held as a tensor."""

from __future__ import annotations

from torch import Tensor

from specxai.operators.algebra import LinearOperator

__all__ = ["DenseOperator"]


class DenseOperator(LinearOperator):
    """A matrix (m, n) held as a tensor.

    Errors: ValueError for what is no matrix, or not of a real floating dtype.

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
