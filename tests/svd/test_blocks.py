"""The block a solver sends through an operator, and whose the result is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.operators import DenseOperator
from specxai.svd.auto import STEP, default_block


class Priced(DenseOperator):
    """A matrix that says what its products cost."""

    def __init__(self, flops: int, efficient_columns: int) -> None:
        super().__init__(torch.zeros(3, 3))
        self._price = flops, efficient_columns

    @property
    def flops(self) -> int:
        return self._price[0]

    @property
    def efficient_columns(self) -> int:
        return self._price[1]


@pytest.mark.parametrize(("flops", "columns", "rank", "block"), [
    (STEP, 4, 10, 4),  # dear products: the fewest columns that are efficient
    (STEP // 8, 4, 10, 16),  # cheap ones: fewer steps
    (STEP, 16, 10, 16),
    (STEP, 4, 17, 32),  # many triplets
    (STEP, 4, None, 32),
])
def test_default_block(flops, columns, rank, block):
    assert default_block(Priced(flops, columns), rank) == block


def test_a_local_operator_has_few_efficient_columns_where_narrow_kernels_are():
    x = torch.randn(1, 1, 6, 6)
    captured = specxai.capture(nn.Conv2d(1, 2, 3).eval(), x)
    for backend, narrow in (("reference", False), ("auto", specxai.native.available()[0])):
        right = captured.linearize(x, backend=backend).jacobian
        vectors = narrow and specxai.native.simd_level() != "scalar"
        assert right.efficient_columns == (4 if vectors else 16)


class Keeping(DenseOperator):
    """Returns what it keeps a hand on."""

    def __init__(self, matrix: torch.Tensor, own: bool) -> None:
        super().__init__(matrix)
        self.own, self.kept = own, []

    @property
    def own_products(self) -> bool:
        return self.own

    def _matmat(self, X):
        return self._keep(super()._matmat(X))

    def _rmatmat(self, Y):
        return self._keep(super()._rmatmat(Y))

    def _keep(self, product):
        self.kept.append((product, product.clone()))
        return product


@pytest.mark.parametrize("method", ["krylov", "subspace", "exact"])
def test_products_that_are_not_the_solver_s_are_left_alone(method):
    matrix = torch.randn(70, 50)
    operator = Keeping(matrix, own=False)
    result = specxai.svd(operator, rank=3, tol=1e-3, method=method)
    assert all(torch.equal(product, before) for product, before in operator.kept)
    owned = specxai.svd(Keeping(matrix, own=True), rank=3, tol=1e-3, method=method)
    torch.testing.assert_close(owned.S, result.S)


def test_products_that_are_the_solver_s_are_overwritten():
    operator = Keeping(torch.randn(70, 50), own=True)
    specxai.svd(operator, rank=3, tol=1e-3, method="krylov")
    assert not all(torch.equal(product, before) for product, before in operator.kept), "memory that need not be new"


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("columns", [1, 4, 64])
@pytest.mark.parametrize("net", [nn.Flatten(), nn.Identity(), nn.ReLU()], ids=str)
def test_a_local_operator_never_returns_its_argument(net, columns, backend):
    x = torch.rand(1, 4, 4, 4) + 0.1
    R = specxai.capture(net.eval(), x).linearize(x, backend=backend).jacobian
    assert R.own_products
    X = torch.randn(64, columns)
    for product in (R.matmat(X), R.rmatmat(X)):
        before = X.clone()
        product.zero_()
        assert torch.equal(X, before)
