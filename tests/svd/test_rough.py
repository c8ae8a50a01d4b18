"""Rough products only seek: what is returned, and every certificate, comes from the operator itself."""

from __future__ import annotations

import pytest
import torch

import specxai
from specxai.operators import DenseOperator


class Cheap(DenseOperator):
    """A matrix whose products seem to cost next to nothing, so that solvers choose it wherever they may."""

    flops = 1


class Rounded(DenseOperator):
    """A matrix with a cheaper twin that is `off` times a random matrix away from it."""

    def __init__(self, matrix: torch.Tensor, off: float) -> None:
        super().__init__(matrix)
        noise = torch.randn_like(matrix)
        self.twin = Cheap(matrix + off * matrix.norm() / noise.norm() * noise)

    flops = 10**12

    def rough(self) -> DenseOperator:
        self.asked = True
        return self.twin


def matrix(steep: float = 0.9) -> torch.Tensor:
    U, V = (torch.linalg.qr(torch.randn(n, 80, dtype=torch.float64))[0] for n in (120, 90))
    return (U * steep ** torch.arange(80)) @ V.T


@pytest.mark.parametrize("off", [1e-3, 1e-2, 10.0])
def test_the_answer_is_the_operator_s(off):
    A = matrix()
    operator = Rounded(A, off)
    result = specxai.svd(operator, rank=6, method="subspace", tol=1e-8, block_size=8)
    assert operator.asked
    assert result.converged
    truth = torch.linalg.svdvals(A)
    assert ((result.S - truth[:6]).abs() <= result.residuals).all()
    assert result.residuals.max() <= 2e-8 * truth[0]
    assert (A - (result.U * result.S) @ result.V.T).norm() <= result.error


def test_rough_products_count(monkeypatch):
    columns = []
    for kind in (DenseOperator, Rounded):
        monkeypatch.setattr(kind, "_matmat", lambda self, X: columns.append(X.shape[1]) or self.matrix @ X)
        monkeypatch.setattr(kind, "_rmatmat", lambda self, Y: columns.append(Y.shape[1]) or self.matrix.mT @ Y)
    result = specxai.svd(Rounded(matrix(), 1e-2), rank=6, method="subspace", tol=1e-6, block_size=8)
    assert result.products == sum(columns)


def test_a_small_budget_ends_in_full_precision():
    A = matrix(0.99)
    rough, plain = (specxai.svd(o, rank=6, method="subspace", tol=0.0, block_size=8, max_products=32 + 14 + 3 * 28)
                    for o in (Rounded(A, 1e-3), DenseOperator(A)))
    assert rough.products == plain.products
    assert rough.residuals.max() <= 1.1 * plain.residuals.max()


def test_a_low_rank_operator_is_not_taken_from_its_twin():
    A = matrix()[:, :3] @ torch.randn(3, 90, dtype=torch.float64)
    result = specxai.svd(Rounded(A, 1e-2), rank=6, method="subspace", block_size=8)
    assert (A - (result.U * result.S) @ result.V.T).norm() <= result.error <= 1e-10 * A.norm()


@pytest.mark.parametrize("off", [1e-3, 1e-2, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_krylov_seeks_with_the_twin_and_certifies_with_the_operator(off, dtype):
    A = matrix(0.97).to(dtype)
    operator = Rounded(A, off)
    result = specxai.svd(operator, rank=6, method="krylov", block_size=16)
    assert result.settings["rough"]
    assert result.converged
    truth = torch.linalg.svdvals(A.double())
    assert ((result.S - truth[:6]).abs() <= result.residuals).all()
    assert result.residuals.max() <= 1e-3 * result.S[0]
    assert (A.double() - ((result.U * result.S) @ result.V.T).double()).norm() <= result.error


def test_krylov_counts_rough_products(monkeypatch):
    columns = []
    for kind in (DenseOperator, Rounded):
        monkeypatch.setattr(kind, "_matmat", lambda self, X: columns.append(X.shape[1]) or self.matrix @ X)
        monkeypatch.setattr(kind, "_rmatmat", lambda self, Y: columns.append(Y.shape[1]) or self.matrix.mT @ Y)
    result = specxai.svd(Rounded(matrix(), 1e-3), rank=6, method="krylov", block_size=16)
    assert result.products == sum(columns)


def test_krylov_keeps_to_a_budget_with_a_twin():
    A = matrix(0.99)
    result = specxai.svd(Rounded(A, 1e-3), rank=6, tol=2.0**-12, method="krylov", block_size=16, max_products=200)
    assert not result.converged
    assert result.products <= 200 + 6 * (6 + 14)


def test_a_finer_tolerance_is_not_sought_with_the_twin():
    operator = Rounded(matrix(), 1e-2)
    result = specxai.svd(operator, rank=6, tol=1e-6, method="krylov")
    assert not result.settings["rough"]
    assert result.residuals.max() <= 1e-6 * result.S[0]


@pytest.mark.parametrize("make", [lambda R: R.T, lambda R: -2 * R, lambda R: (R / 4).T])
def test_adjoints_and_multiples_have_the_twin_of_their_operator(make):
    A = matrix()
    operator = Rounded(A, 1e-3)
    result = specxai.svd(make(operator), rank=6, method="krylov", block_size=16)
    assert operator.asked
    assert result.settings["rough"]
    assert result.converged
    truth = torch.linalg.svdvals(make(DenseOperator(A)).to_dense())
    assert ((result.S - truth[:6]).abs() <= result.residuals).all()
