"""Answers do not depend on the unit that an operator is measured in, nor on whose memory its products are."""

from __future__ import annotations

import pytest
import torch

import specxai
from specxai.operators import DenseOperator, LinearOperator

SCALES = {torch.float32: [1e-37, 1e-25, 1e-21, 1e20, 1e30, 1e36], torch.float64: [1e-305, 1e-200, 1e170, 1e290]}


@pytest.mark.parametrize("method", ["exact", "krylov", "subspace"])
@pytest.mark.parametrize(("dtype", "scale"), [(dtype, scale) for dtype, scales in SCALES.items() for scale in scales])
def test_scaled_operators_have_scaled_answers(method, dtype, scale):
    A = (torch.randn(90, 60, dtype=torch.float64) * torch.logspace(0, -3, 60, dtype=torch.float64)).to(dtype)
    plain = specxai.svd(DenseOperator(A), rank=5, method=method)
    scaled = specxai.svd(DenseOperator(A * scale), rank=5, method=method)
    assert scaled.converged
    torch.testing.assert_close(scaled.S.double() / scale, plain.S.double(), rtol=1e-5, atol=0)
    for name in ("error", "estimate", "norm", "floor"):
        assert getattr(scaled, name) / scale == pytest.approx(getattr(plain, name), rel=1e-2), name
    assert (scaled.residuals / scale <= 1.5e-3 * plain.S[0].double()).all()


def test_factors_of_a_cut_may_be_out_of_range_where_their_product_is_not():
    left, right = torch.randn(50, 8), torch.randn(8, 60)
    result = specxai.svd(DenseOperator(left * 1e-30) @ DenseOperator(right * 1e30))
    truth = torch.linalg.svdvals(left.double() @ right.double())[:8]
    assert result.settings["through_cut"]
    torch.testing.assert_close(result.S.double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ["exact", "krylov", "subspace"])
def test_zero_stays_zero(method):
    result = specxai.svd(DenseOperator(torch.zeros(30, 20)), rank=3, method=method)
    assert (result.rank, result.error, result.norm) == (0, 0, 0)


class Reusing(LinearOperator):
    """Products of one shape are always the same memory."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__(tuple(matrix.shape), matrix.dtype)
        self.matrix, self.kept = matrix, {}

    def _matmat(self, X):
        return self._product(self.matrix, X)

    def _rmatmat(self, Y):
        return self._product(self.matrix.mT, Y)

    def _product(self, matrix, X):
        shape = (len(matrix), X.shape[1])
        return torch.mm(matrix, X, out=self.kept.setdefault(shape, torch.zeros(shape)))


@pytest.mark.parametrize("method", ["exact", "krylov", "subspace"])
def test_an_operator_may_reuse_its_memory(method):
    A = torch.randn(90, 60)
    reused, plain = (specxai.svd(operator, rank=5, method=method) for operator in (Reusing(A), DenseOperator(A)))
    torch.testing.assert_close(reused.S, plain.S)
    assert reused.error == pytest.approx(plain.error, rel=1e-3)
