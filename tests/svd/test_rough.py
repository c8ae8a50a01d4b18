"""Rough products only seek: what is returned, and every certificate, comes from the operator itself."""

from __future__ import annotations

import pytest
import torch

import specxai
from specxai.operators import DenseOperator


class Rounded(DenseOperator):
    """A matrix with a cheaper twin that is `off` times a random matrix away from it."""

    def __init__(self, matrix: torch.Tensor, off: float) -> None:
        super().__init__(matrix)
        noise = torch.randn_like(matrix)
        self.twin = DenseOperator(matrix + off * matrix.norm() / noise.norm() * noise)

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
