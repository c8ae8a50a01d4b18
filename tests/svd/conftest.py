"""Matrices with prescribed spectra, and what the truth about a result is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from specxai.operators import LinearOperator

SIZE = 60
SPECTRA = {
    "flat": torch.ones(SIZE),
    "steep": 10.0 ** -torch.linspace(0, 12, SIZE, dtype=torch.float64),
    "clustered": torch.cat([3 + 1e-6 * torch.arange(10.0, 0, -1, dtype=torch.float64), torch.linspace(1, 0.1, 50)]),
    "deficient": torch.cat([torch.linspace(2, 1, 20), torch.zeros(40)]),
    "one": torch.cat([torch.ones(1), torch.zeros(SIZE - 1)]),
    "zero": torch.zeros(SIZE),
}


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))[0]


def prescribed(spectrum: Tensor, m: int, n: int, dtype: torch.dtype, seed: int = 7) -> Tensor:
    """A matrix (m, n) whose singular values are `spectrum`, to rounding in `dtype`."""
    k = len(spectrum)
    return ((orthonormal(m, k, seed) * spectrum.double()) @ orthonormal(n, k, seed + 1).mT).to(dtype)


def truth(matrix: Tensor, result) -> SimpleNamespace:
    """The true error in Frobenius norm, and each value's distance to the nearest true one, in float64."""
    values = torch.linalg.svdvals(matrix.double())
    U, S, V = (t.double() for t in (result.U, result.S, result.V))
    distance = (S[:, None] - values).abs().amin(1) if len(S) else S
    return SimpleNamespace(
        values=values, error=float(torch.linalg.norm(matrix.double() - (U * S) @ V.mT)), distance=distance
    )


def is_rank(rank: int, values: Tensor, floor: float) -> bool:
    """Is it how many of the true values lie above the floor?  LAPACK knows those to a few roundings of the largest."""
    slack = 8 * torch.finfo(values.dtype).eps * float(values[0])
    return int((values > floor + slack).sum()) <= rank <= int((values > floor - slack).sum())


def check(matrix: Tensor, result) -> SimpleNamespace:
    """Everything that any result must keep to: shapes, order, orthonormality, and certificates that bound the truth."""
    m, n = matrix.shape
    k = result.rank
    assert result.U.shape == (m, k)
    assert result.V.shape == (n, k)
    assert result.S.shape == result.residuals.shape == (k,)
    assert result.U.dtype == result.S.dtype == result.V.dtype == matrix.dtype
    assert bool((result.S[1:] <= result.S[:-1]).all())
    assert bool((result.S > 0).all())
    unit, eps = torch.eye(k, dtype=torch.float64), torch.finfo(matrix.dtype).eps
    for Q in (result.U.double(), result.V.double()):
        assert float(torch.linalg.norm(Q.mT @ Q - unit)) <= 64 * eps * max(k, 1) ** 0.5
    real = truth(matrix, result)
    assert real.error <= result.error
    assert bool((real.distance <= result.residuals).all()), (real.distance - result.residuals).max()
    return real


class CountingOperator(LinearOperator):
    """A dense operator that counts the columns it is asked for."""

    def __init__(self, matrix: Tensor, **kwargs) -> None:
        super().__init__(tuple(matrix.shape), matrix.dtype, **kwargs)
        self.matrix = matrix
        self.columns = 0
        self.widest = 0

    def _matmat(self, X: Tensor) -> Tensor:
        self._count(X)
        return self.matrix @ X

    def _rmatmat(self, Y: Tensor) -> Tensor:
        self._count(Y)
        return self.matrix.mT @ Y

    def _count(self, block: Tensor) -> None:
        self.columns += block.shape[1]
        self.widest = max(self.widest, block.shape[1])


@pytest.fixture
def kit() -> SimpleNamespace:
    return SimpleNamespace(
        spectra=SPECTRA, prescribed=prescribed, orthonormal=orthonormal, check=check, truth=truth,
        is_rank=is_rank, CountingOperator=CountingOperator,
    )  # fmt: skip


@pytest.fixture(params=list(SPECTRA))
def spectrum(request) -> Tensor:
    return SPECTRA[request.param]


@pytest.fixture(params=[(100, 80), (70, 130)], ids=["tall", "wide"])
def shape(request) -> tuple[int, int]:
    return request.param


@pytest.fixture(params=["exact", "krylov", "subspace"])
def method(request) -> str:
    return request.param
