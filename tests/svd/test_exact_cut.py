"""Exact through the narrowest cut: the bottleneck's cost, the dense answer."""

from __future__ import annotations

import pytest
import torch

import specxai
from specxai.operators import DenseOperator, LinearOperator
from specxai.svd.exact import SAMPLED


@pytest.mark.parametrize("width", [1, 8, 30])
@pytest.mark.parametrize("shape", [(70, 90), (90, 70)])
def test_cut_equals_dense(kit, width, shape, dtype):
    left, right = torch.randn(shape[0], width, dtype=dtype), torch.randn(width, shape[1], dtype=dtype)
    result = specxai.svd(DenseOperator(left) @ DenseOperator(right))
    product = left.double() @ right.double()
    dense = specxai.svd(DenseOperator(product))
    assert result.settings["through_cut"]
    assert result.settings["width"] == width == result.rank
    assert result.products == width + 2 * min(width, SAMPLED)
    error = torch.linalg.norm(product - (result.U.double() * result.S.double()) @ result.V.double().mT)
    assert float(error) <= result.error
    assert bool(((result.S.double() - dense.S[:width]).abs() <= result.residuals).all())


def test_each_half_is_asked_for_the_width_only(kit):
    left, right = kit.CountingOperator(torch.randn(70, 5)), kit.CountingOperator(torch.randn(5, 90))
    result = specxai.svd(left @ right)
    assert left.columns == right.columns == 5 + 2 * result.rank == result.products


def test_adjoint_goes_through_the_cut_too(kit, dtype):
    left, right = torch.randn(70, 5, dtype=dtype), torch.randn(5, 90, dtype=dtype)
    operator = (DenseOperator(left) @ DenseOperator(right)).T
    result = specxai.svd(operator)
    assert result.settings["width"] == 5
    assert result.U.shape == (90, 5)


def test_factors_that_nearly_annihilate(dtype):
    # ‖A‖ ‖B‖ is 1e6 ‖AB‖: rounding is relative to the factors, and the certificates must know.
    Q = torch.linalg.qr(torch.randn(50, 12, dtype=torch.float64))[0]
    left = (torch.randn(40, 6, dtype=torch.float64) @ Q[:, :6].mT).to(dtype)
    right = (Q[:, 6:] @ torch.randn(6, 60, dtype=torch.float64) + 1e-6 * torch.randn(50, 60)).to(dtype)
    product = left.double() @ right.double()
    result = specxai.svd(DenseOperator(left) @ DenseOperator(right), method="exact")
    error = torch.linalg.norm(product - (result.U.double() * result.S.double()) @ result.V.double().mT)
    assert float(error) <= result.error


class Beside(LinearOperator):
    """diag(D, A B) with A B of no cut: its products round by ‖A‖ ‖B‖, in the second block only."""

    def __init__(self, D, A, B):
        super().__init__((len(D) + len(A), D.shape[1] + B.shape[1]), D.dtype)
        self.parts = D, A, B

    def _matmat(self, X):
        D, A, B = self.parts
        return torch.cat([D @ X[: D.shape[1]], A @ (B @ X[D.shape[1] :])])

    def _rmatmat(self, Y):
        D, A, B = self.parts
        return torch.cat([D.mT @ Y[: len(D)], B.mT @ (A.mT @ Y[len(D) :])])


def test_rounding_in_a_part_of_the_map_is_seen(dtype):
    """Residuals come from the factors: how far products round in a block of 6 among 46 triplets must be in them."""
    Q = torch.linalg.qr(torch.randn(50, 12, dtype=torch.float64))[0]
    left = (torch.randn(6, 6, dtype=torch.float64) @ Q[:, :6].mT).to(dtype)
    right = (1e-2 * Q[:, 6:] @ torch.randn(6, 9, dtype=torch.float64) + 1e-6 * torch.randn(50, 9)).to(dtype)
    operator = Beside(1e-5 * torch.randn(40, 70, dtype=dtype), left, right)
    truth = torch.block_diag(operator.parts[0].double(), left.double() @ right.double())
    result = specxai.svd(operator, method="exact")
    assert result.rank > SAMPLED
    U, S, V = (factor.double() for factor in (result.U, result.S, result.V))
    residuals = (truth @ V - U * S).norm(dim=0)
    assert bool((residuals <= result.residuals).all())
    assert float(torch.linalg.norm(truth - U * S @ V.mT)) <= result.error
    assert float(residuals.max()) > result.floor, "the model of rounding alone would have held"


class Cancelling(LinearOperator):
    """x -> (B x + S x) − B x with B far larger than S."""

    def __init__(self, S):
        super().__init__(S.shape, S.dtype)
        self.S = S

    def _matmat(self, X):
        large = X.sum(0, keepdim=True)
        return (large + self.S @ X) - large

    def _rmatmat(self, Y):
        large = Y.sum(0, keepdim=True)
        return (large + self.S.mT @ Y) - large


@pytest.mark.parametrize(("size", "rank"), [(200, 10), (30, 2)])
def test_rounding_of_what_is_left_out_is_in_the_error(size, rank):
    S = 1e-8 * torch.randn(size, size)
    result = specxai.svd(Cancelling(S), rank=rank, method="exact")
    U, s, V = (factor.double() for factor in (result.U, result.S, result.V))
    assert float(torch.linalg.norm(S.double() - U * s @ V.mT)) <= result.error


@pytest.mark.parametrize("size", [30, 50])  # certified by products of all triplets, and of a few columns
def test_products_that_overflow_are_named(size):
    symmetric = torch.ones(size, size) - 3 * torch.diag(torch.arange(1.0, 1 + size))  # of dense singular vectors

    def overflowing(X):
        return symmetric @ X + (torch.inf if X.abs().sum() > 1.5 * X.shape[1] else 0.0)

    class Overflowing(LinearOperator):
        _matmat = _rmatmat = staticmethod(overflowing)

    with pytest.raises(ValueError, match="values that are not finite"):
        specxai.svd(Overflowing((size, size), torch.float32), method="exact")


def test_a_wide_cut_is_not_used():
    result = specxai.svd(DenseOperator(torch.randn(10, 50)) @ DenseOperator(torch.randn(50, 12)))
    assert not result.settings["through_cut"]
    assert result.products == 10 + 2 * 10


def test_a_cut_that_saves_little_is_not_used():
    left, right = torch.randn(70, 60), torch.randn(60, 90)
    result = specxai.svd(DenseOperator(left) @ DenseOperator(right))
    assert not result.settings["through_cut"]
    assert result.rank == 60  # the rest is rounding
    assert result.products == 70 + 2 * SAMPLED


@pytest.mark.parametrize("shape", [(60, 150), (150, 60)])
@pytest.mark.parametrize("through_cut", [False, True])
def test_triplets_down_to_the_floor(shape, through_cut, dtype):
    """A spectrum over all digits: vectors stay orthonormal, and each triplet is as good as rounding allows."""
    w = 30 if through_cut else 60
    U, V = (torch.linalg.qr(torch.randn(size, w, dtype=torch.float64))[0] for size in shape)
    s = torch.logspace(0, -17, w, dtype=torch.float64)
    left, right = ((factor * s.sqrt()).to(dtype) for factor in (U, V))
    whole = DenseOperator(left) @ DenseOperator(right.mT.contiguous())
    operator = whole if through_cut else DenseOperator(whole.to_dense())
    result = specxai.svd(operator)
    assert result.settings["through_cut"] is through_cut
    for vectors in (result.U, result.V):
        skew = vectors.mT @ vectors - torch.eye(result.rank, dtype=dtype)
        assert float(skew.abs().max()) < max(shape) * torch.finfo(dtype).eps
    assert result.floor < float(result.S.min()) < 5 * result.floor
    lapack = w * torch.finfo(torch.float64).eps  # of the small SVD, λ₁ being 1
    assert bool((result.residuals < 2 * result.floor + lapack).all())
    want = torch.linalg.svdvals(operator.to_dense().double())[: result.rank]
    assert bool(((result.S - want).abs() < result.residuals).all())


def test_auto_prefers_a_bottleneck_and_iterates_without_one():
    generator = torch.Generator().manual_seed(5)
    left = torch.randn(900, 8, generator=generator)
    right = torch.randn(8, 1200, generator=generator)
    narrow = specxai.svd(DenseOperator(left) @ DenseOperator(right), rank=4)
    assert narrow.method == "exact"
    assert narrow.rank == 4
    wide = specxai.svd(DenseOperator(torch.diag(1 / torch.arange(1.0, 2001.0) ** 2)), rank=4)
    assert wide.method == "krylov"
    assert "FLOPs" in wide.settings["reason"]
