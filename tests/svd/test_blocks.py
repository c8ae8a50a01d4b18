"""The block a solver sends through an operator, and whose the result is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.operators import DenseOperator
from specxai.svd import krylov
from specxai.svd.auto import STEP, choose_blocks


class Priced(DenseOperator):
    """A matrix that says what its products cost: `narrow` times a wide one's where they have 4 columns or fewer, and
    half with a rough twin."""

    def __init__(self, flops: int, narrow: float, rough: bool = False) -> None:
        super().__init__(torch.zeros(1500, 1200))
        self._flops, self._narrow, self._rough = flops, narrow, rough

    @property
    def flops(self) -> int:
        return self._flops

    def column_cost(self, columns: int) -> float:
        return self._narrow if columns <= 4 else 1.0

    def rough(self) -> Priced | None:
        return Priced(self._flops // 2, self._narrow) if self._rough else None


@pytest.mark.parametrize(("operator", "rank", "tol", "columns", "rough"), [
    (Priced(40 * STEP, 1.2), 10, 1e-3, 4, False),  # dear products: the fewest columns
    (Priced(40 * STEP, 2.5), 10, 1e-3, 8, False),  # dear narrow ones
    (Priced(STEP // 8, 1.2), 10, 1e-3, 8, False),  # cheap ones: fewer steps
    (Priced(40 * STEP, 1.2, rough=True), 10, 1e-3, 16, True),
    (Priced(40 * STEP, 1.2, rough=True), 10, 1e-5, 4, False),  # finer than rough products tell
    (Priced(40 * STEP, 1.2, rough=True), None, 1e-3, 32, False),
])
def test_the_cheapest_blocks(operator, rank, tol, columns, rough):
    blocks = choose_blocks(operator, rank, tol)
    assert (blocks.columns, blocks.rough) == (columns, rough)
    assert choose_blocks(operator, rank, tol, 24).columns == 24


def test_a_local_operator_says_what_columns_cost():
    x = torch.randn(1, 1, 6, 6)
    captured = specxai.capture(nn.Conv2d(1, 2, 3).eval(), x)
    for backend in ("reference", "auto"):
        right = captured.linearize(x, backend=backend).jacobian
        costs = [right.column_cost(columns) for columns in (1, 4, 16, 64)]
        assert costs[0] > costs[1] > costs[-1] >= 1
        twin = right.rough()
        assert twin is None or twin.column_cost(64) < costs[-1]


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


def test_products_that_are_the_solver_s_are_overwritten(monkeypatch):
    monkeypatch.setattr(krylov, "KEPT_IMAGES", 0)
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


@pytest.mark.parametrize("max_basis", [None, 24])
def test_residuals_of_kept_products_need_no_others(monkeypatch, max_basis):
    matrix = torch.randn(300, 200) @ torch.diag(torch.logspace(0, -2, 200))
    given = {"rank": 7, "tol": 1e-5, "method": "krylov", "block_size": 4, "max_basis": max_basis}
    kept = specxai.svd(DenseOperator(matrix), **given)
    monkeypatch.setattr(krylov, "KEPT_IMAGES", 0)
    asked = specxai.svd(DenseOperator(matrix), **given)
    assert kept.products == asked.products - 2 * 7
    assert torch.equal(kept.S, asked.S)
    assert torch.equal(kept.V, asked.V)
    assert (kept.residuals - asked.residuals).abs().max() <= 4 * asked.floor
    U, S, V = kept.U.double(), kept.S.double(), kept.V.double()
    true = torch.linalg.norm(matrix.double() @ V - U * S, dim=0)
    assert (true <= kept.residuals).all()
