"""Operators on top of each other, or side by side: one map of all, that none of them is copied for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specxai.operators.algebra import LinearOperator

__all__ = ["StackedOperator", "hstack", "vstack"]


def vstack(operators: Sequence[LinearOperator]) -> LinearOperator:
    """The operators (m_i, n) on top of each other, (Σ m_i, n): over several inputs of a network, the directions that
    all of their maps answer to.

    Errors: ValueError for none, or where the columns, dtypes or devices differ; TypeError for what is no operator.

    Example:
        >>> import torch, specxai
        >>> from specxai.operators import vstack
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> J = vstack([specxai.linearize(net, x).jacobian for x in torch.randn(5, 1, 4)])
        >>> J.shape, specxai.svd(J, rank=1).V.shape
        ((15, 4), torch.Size([4, 1]))
    """
    return StackedOperator(operators)


def hstack(operators: Sequence[LinearOperator]) -> LinearOperator:
    """The operators (m, n_i) side by side, (m, Σ n_i).

    Errors: ValueError for none, or where the rows, dtypes or devices differ; TypeError for what is no operator.

    Example:
        >>> import torch
        >>> from specxai.operators import DenseOperator, hstack
        >>> hstack([DenseOperator(torch.eye(2)), DenseOperator(torch.ones(2, 1))]).to_dense()
        tensor([[1., 0., 1.],
                [0., 1., 1.]])
    """
    operators = _operators(operators)
    return StackedOperator([one.T for one in operators]).T


class StackedOperator(LinearOperator):
    """The operators `parts` (m_i, n) on top of each other; see `vstack`.

    Errors: ValueError for none, or where the columns, dtypes or devices differ; TypeError for what is no operator.

    Example:
        >>> import torch
        >>> from specxai.operators import DenseOperator, StackedOperator
        >>> StackedOperator([DenseOperator(torch.eye(2)), DenseOperator(torch.ones(1, 2))]) @ torch.tensor([2.0, 3.0])
        tensor([2., 3., 5.])
    """

    def __init__(self, parts: Sequence[LinearOperator], *, block_size: int | None = None) -> None:
        self.parts = _operators(parts)
        if not self.parts:
            raise ValueError("nothing to stack: give at least one operator")
        first = self.parts[0]
        for number, one in enumerate(self.parts):
            for what, theirs, ours in (("columns", one.shape[1], first.shape[1]), ("dtype", one.dtype, first.dtype),
                                       ("device", one.device, first.device)):
                if theirs != ours:
                    raise ValueError(f"cannot stack operators of different {what}: number 0 has {ours}, number "
                                     f"{number} has {theirs}")
        super().__init__((sum(one.shape[0] for one in self.parts), first.shape[1]), first.dtype, first.device,
                         block_size=block_size)

    def ensure_current(self) -> None:
        for one in self.parts:
            one.ensure_current()

    def expect(self, columns: int) -> None:
        for one in self.parts:
            one.expect(columns)

    @property
    def input_shape(self) -> torch.Size:
        return self.parts[0].input_shape

    def _matmat(self, X: Tensor) -> Tensor:
        return torch.cat([one.matmat(X) for one in self.parts])

    def _rmatmat(self, Y: Tensor) -> Tensor:
        total = None
        for one, part in zip(self.parts, Y.split([one.shape[0] for one in self.parts]), strict=True):
            product = one.rmatmat(part)
            if total is None:
                total = product if one.own_products else product.clone()
            else:
                total += product
        return total

    @property
    def flops(self) -> int:
        return sum(one.flops for one in self.parts)

    def column_cost(self, columns: int) -> float:
        """The mean of the parts' by their operations."""
        total = sum(one.flops for one in self.parts)
        costs = [one.column_cost(columns) for one in self.parts]
        return sum(one.flops * cost for one, cost in zip(self.parts, costs, strict=True)) / total if total else max(
            costs)

    @property
    def own_products(self) -> bool:
        return True

    @property
    def is_zero(self) -> bool:
        return all(one.is_zero for one in self.parts)


def _operators(given: Sequence[LinearOperator]) -> list[LinearOperator]:
    try:
        found = list(given)
    except TypeError:
        raise TypeError(f"operators are given as a list, got {type(given).__name__}") from None
    for one in found:
        if not isinstance(one, LinearOperator):
            raise TypeError(f"operators are stacked, got {type(one).__name__}; wrap a matrix as DenseOperator(matrix)")
    return found
