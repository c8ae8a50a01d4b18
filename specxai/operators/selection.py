"""Some numbers of a vector: the map that takes them out, whose adjoint puts them among zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.operators.algebra import LinearOperator

__all__ = ["SelectionOperator"]


class SelectionOperator(LinearOperator):
    """x (n,) -> x[indices] (p,); the adjoint writes p numbers into n zeros.

    `R @ S.T @ S` is R with all columns but the chosen ones zero, and knows that it is no wider than these.

    indices   (p,) distinct places in 0 .. n−1
    Errors: TypeError for indices that are no tensor of integers, ValueError where they are out of range or come twice.

    Example:
        >>> import torch
        >>> from specxai.operators import DenseOperator, SelectionOperator
        >>> R, S = DenseOperator(torch.tensor([[1.0, 2.0, 3.0]])), SelectionOperator(torch.tensor([2]), 3)
        >>> (R @ S.T @ S).to_dense(), (R @ S.T @ S).narrowest_cut().width
        (tensor([[0., 0., 3.]]), 1)
    """

    def __init__(self, indices: Tensor, n: int, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu") -> None:
        if not isinstance(indices, Tensor) or indices.dtype not in (torch.int32, torch.int64):
            got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
            raise TypeError(f"indices is a tensor of integers, got {got}; take .nonzero().flatten() of a mask")
        chosen = indices.detach().long().flatten()
        if chosen.numel() and (int(chosen.min()) < 0 or int(chosen.max()) >= n):
            raise ValueError(f"indices lie between {int(chosen.min())} and {int(chosen.max())}, and a vector of {n} "
                             f"numbers has places 0 to {n - 1}")
        if len(chosen.unique()) < len(chosen):
            raise ValueError("indices name a place twice: give each once")
        super().__init__((len(chosen), n), dtype, device)
        self.indices = chosen.to(self.device)

    def _matmat(self, X: Tensor) -> Tensor:
        return X[self.indices]

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return Y.new_zeros(self.shape[1], Y.shape[1]).index_copy_(0, self.indices, Y)

    @property
    def flops(self) -> int:
        return 0

    @property
    def own_products(self) -> bool:
        return True
