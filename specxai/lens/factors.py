"""A matrix of the lens as a multiple of the identity plus a certified truncated SVD."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """J_l ≈ a I + U diag(S) Vᵀ with certificates.

    U, V        (d, k), orthonormal columns
    S           (k,), descending
    residuals   (k,), of each triplet of J_l − a I, as in `specxai.svd.SVDResult`
    scale       a, about the mean of J_l's diagonal
    error       bound of ‖J_l − a I − U diag(S) Vᵀ‖_F

    >>> import torch
    >>> one, none = torch.tensor([[1.0], [0.0]]), torch.zeros(1)
    >>> LowRank(one, torch.tensor([3.0]), one, none, 2.0, 0.0).dense()
    tensor([[5., 0.],
            [0., 2.]])
    """

    U: Tensor
    S: Tensor
    V: Tensor
    residuals: Tensor
    scale: float
    error: float

    def dense(self) -> Tensor:
        """The matrix (d, d)."""
        found = (self.U * self.S) @ self.V.T
        found.diagonal().add_(self.scale)
        return found

    def transport(self, h: Tensor) -> Tensor:
        """J_l h for residuals h (*, d), without the matrix."""
        U, S, V = (part.to(h) for part in (self.U, self.S, self.V))
        return self.scale * h + ((h @ V) * S) @ U.T


class OnDemand(Mapping):
    """{layer: matrix (d, d)} made of factors where it is asked for."""

    def __init__(self, factors: Mapping[int, LowRank]) -> None:
        self._factors = factors

    def __getitem__(self, layer: int) -> Tensor:
        return self._factors[layer].dense()

    def __iter__(self) -> Iterator[int]:
        return iter(self._factors)

    def __len__(self) -> int:
        return len(self._factors)
