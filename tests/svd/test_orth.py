"""CholeskyQR2 and what it falls back to."""

from __future__ import annotations

import pytest
import torch

from specxai.svd import orth
from tolerances import assert_close


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("condition", [1.0, 3.0, 30.0, 1e4, 1e7, 1e12, float("inf")])
@pytest.mark.parametrize("shape", [(200, 12), (12, 12), (5, 12), (1, 3), (7, 0), (0, 4)])
def test_tall_qr(shape, condition, overwrite, dtype):
    m, b = shape
    scales = torch.logspace(0, -torch.log10(torch.tensor(condition)).clamp_max(30), b, dtype=torch.float64)
    X = (torch.randn(m, b, dtype=torch.float64) * scales).to(dtype)
    if condition == float("inf") and b > 1:
        X[:, 1] = X[:, 0]
    given = X.clone()
    Q, C = orth.tall_qr(given, overwrite=overwrite)
    if not overwrite:
        assert torch.equal(given, X)
    elif m > b > 1 and condition <= 30:
        assert Q.data_ptr() == given.data_ptr()
    eps, r = torch.finfo(dtype).eps, min(m, b)
    assert Q.shape == (m, r)
    assert C.shape == (r, b)
    unit = torch.eye(r, dtype=torch.float64)
    assert float(torch.linalg.norm(Q.double().mT @ Q.double() - unit)) <= 64 * eps * max(r, 1) ** 0.5
    assert float(torch.linalg.norm(X.double() - Q.double() @ C)) <= 64 * eps * float(torch.linalg.norm(X.double()))


@pytest.mark.parametrize("shape", [(100_000, 5, 3), (7, 4, 4), (6, 3, 0), (0, 2, 1)])
def test_a_tall_product_in_its_own_place(shape, dtype):
    m, b, k = shape
    X, M = torch.randn(m, b, dtype=dtype), torch.randn(b, k, dtype=torch.float64)
    given = X.clone()
    product = orth.tall_product(given, M, overwrite=True)
    assert product.is_contiguous()
    assert product.numel() == 0 or product.data_ptr() == given.data_ptr()
    assert_close(product, X @ M.to(dtype))
    assert_close(orth.tall_product(X.T.contiguous().T, M, overwrite=True), X @ M.to(dtype))  # in no order to overwrite


def test_householder_is_the_fallback(monkeypatch, dtype):
    called = []
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda X: called.append(1) or qr(X))
    good = torch.randn(100, 8, dtype=dtype)
    orth.tall_qr(good)
    assert not called
    orth.tall_qr(torch.zeros(100, 8, dtype=dtype))
    assert called


def test_range_basis_drops_what_is_below_the_floor(dtype):
    X = torch.randn(50, 3, dtype=dtype) @ torch.randn(3, 8, dtype=dtype)
    Q, C = orth.range_basis(X, 1e-4)
    assert Q.shape == (50, 3)
    assert float(torch.linalg.norm(X.double() - Q.double() @ C)) <= 1e-3


def test_extend_is_orthogonal_to_the_basis_even_when_nearly_dependent(dtype):
    eps = torch.finfo(dtype).eps
    basis = torch.linalg.qr(torch.randn(300, 20, dtype=dtype))[0]
    X = basis @ torch.randn(20, 6, dtype=dtype) + 1e3 * eps * torch.randn(300, 6, dtype=dtype)
    Q, H, C = orth.extend(basis, X, floor=10 * eps)
    assert Q.shape == (300, 6)
    assert float((basis.double().mT @ Q.double()).abs().max()) <= 20 * eps
    error = torch.linalg.norm(X.double() - basis.double() @ H - Q.double() @ C)
    assert float(error) <= 64 * eps * float(torch.linalg.norm(X.double()))


def test_a_long_chain_of_blocks_stays_orthonormal(monkeypatch, dtype):
    """Golub-Kahan on a band: what a basis lacks in orthogonality must not grow from block to block."""
    calls, project_out = [], orth.project_out
    monkeypatch.setattr(orth, "project_out", lambda basis, X: calls.append(X) or project_out(basis, X))
    spectrum = (torch.linspace(0.05, 1.5, 800).sin() + 0.1).to(dtype)[:, None]
    left = torch.linalg.qr(torch.randn(800, 4, dtype=dtype))[0]
    bases = [left, torch.zeros(800, 0, dtype=dtype)]  # left, right
    new = left
    for step in range(119):
        side = (step + 1) % 2
        new, _, _ = orth.extend(bases[side], spectrum * new, floor=0.0)
        bases[side] = torch.cat([bases[side], new], 1)
    assert len(calls) < 2 * 118  # some needed one projection only
    for basis in bases:
        lacks = basis.double().mT @ basis.double() - torch.eye(basis.shape[1])
        assert float(lacks.abs().max()) <= 200 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("outside", "projections"), [(0.01, 2), (0.3, 2), (0.9, 2), (2.0, 1), (10.0, 1)])
def test_one_projection_is_enough_where_most_lies_outside(monkeypatch, outside, projections, dtype):
    eps, calls, project_out = torch.finfo(dtype).eps, [], orth.project_out
    monkeypatch.setattr(orth, "project_out", lambda basis, X: calls.append(X) or project_out(basis, X))
    basis = torch.linalg.qr(torch.randn(300, 20, dtype=dtype))[0]
    inside, rest = (torch.linalg.qr(torch.randn(n, 6, dtype=dtype))[0] for n in (20, 300))
    X = basis @ inside + outside * (rest - basis @ (basis.mT @ rest))
    Q, H, C = orth.extend(basis, X, floor=10 * eps)
    assert len(calls) == projections
    assert float((basis.double().mT @ Q.double()).abs().max()) <= 5 * eps
    assert float((Q.double().mT @ Q.double() - torch.eye(6)).abs().max()) <= 20 * eps
    error = torch.linalg.norm(X.double() - basis.double() @ H - Q.double() @ C)
    assert float(error) <= 16 * eps * float(torch.linalg.norm(X.double()))


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-4])
def test_columns_that_are_nearly_parallel_outside_are_projected_twice(gap, dtype):
    eps = torch.finfo(dtype).eps
    basis = torch.linalg.qr(torch.randn(2000, 60, dtype=dtype))[0]
    outside = torch.randn(2000, 1, dtype=dtype) + gap * torch.randn(2000, 4, dtype=dtype)
    Q, _, _ = orth.extend(basis, outside + basis @ torch.randn(60, 4, dtype=dtype) * gap, floor=0.0)
    assert float((basis.double().mT @ Q.double()).abs().max()) <= 5 * eps


def test_extend_of_a_full_basis_is_empty(dtype):
    basis = torch.linalg.qr(torch.randn(10, 10, dtype=dtype))[0]
    Q, _, _ = orth.extend(basis, torch.randn(10, 4, dtype=dtype), floor=0.0)
    assert Q.shape == (10, 0)


def test_gram_in_row_blocks(monkeypatch, dtype):
    X, Y = torch.randn(100, 4, dtype=dtype), torch.randn(100, 3, dtype=dtype)
    whole = orth.gram(X, Y)
    monkeypatch.setattr(orth, "CHUNK", 70)
    torch.testing.assert_close(orth.gram(X, Y), whole)
    torch.testing.assert_close(whole, X.double().mT @ Y.double())
