"""The zero map, such as that of the paths round a layer where nothing goes round it."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.operators.algebra import LinearOperator

__all__ = ["ZeroOperator"]


class ZeroOperator(LinearOperator):
    """The zero map between vectors that are flattened from `input_shape` and `output_shape`; added, it disappears.

    Example:
        >>> import torch
        >>> from specxai.operators import DenseOperator, ZeroOperator
        >>> zero, R = ZeroOperator((2, 3), output_shape=(4,)), DenseOperator(torch.ones(4, 6))
        >>> zero, zero.is_zero, R + zero is R
        (ZeroOperator(4 x 6, float32, cpu), True, True)
    """

    def __init__(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...],
                 dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self._shapes = torch.Size(input_shape), torch.Size(output_shape)
        super().__init__((self._shapes[1].numel(), self._shapes[0].numel()), dtype, device)

    @property
    def input_shape(self) -> torch.Size:
        return self._shapes[0]

    @property
    def output_shape(self) -> torch.Size:
        return self._shapes[1]

    def _matmat(self, X: Tensor) -> Tensor:
        return X.new_zeros(self.shape[0], X.shape[1])

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return Y.new_zeros(self.shape[1], Y.shape[1])

    @property
    def flops(self) -> int:
        return 0

    @property
    def own_products(self) -> bool:
        return True

    @property
    def is_zero(self) -> bool:
        return True
