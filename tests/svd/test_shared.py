"""SVDs of the blocks of an operator from shared adjoint products, against LAPACK block by block."""

from __future__ import annotations

import pytest
import torch

from specxai.operators import ComposedOperator, DenseOperator
from specxai.svd.shared import block_svds, leading

T, D = 5, 24


def blocks(m: int, dtype: torch.dtype, decay: float = 0.8, scales=(1.0, 1e-3, 1e-2, 10.0, 0.3)) -> torch.Tensor:
    """(T, m, D), singular values that fall by `decay`, each block of its own size."""
    parts = []
    for scale in scales:
        U, V = (torch.linalg.qr(torch.randn(n, min(m, D), dtype=torch.float64))[0] for n in (m, D))
        parts.append(scale * U * decay ** torch.arange(min(m, D)) @ V.mT)
    return torch.stack(parts).to(dtype)


def side_by_side(J: torch.Tensor) -> DenseOperator:
    return DenseOperator(J.transpose(0, 1).reshape(J.shape[1], -1).contiguous())


def check(found, J: torch.Tensor, k: int) -> None:
    """Singular values, orthonormal vectors, and residuals that bound the true ones."""
    wanted = torch.linalg.svdvals(J.double())[:, :k]
    assert ((found.S.double() - wanted).abs() <= found.residuals).all()
    for vectors in (found.U, found.V):
        gram = vectors.double().mT @ vectors.double()
        assert (gram - torch.eye(k)).abs().max() < 1e-5
    J, U, S, V = (t.double() for t in (J, found.U, found.S[:, None], found.V))
    true = torch.maximum((J @ V - U * S).norm(dim=1), (J.mT @ U - V * S).norm(dim=1))
    assert (true <= found.residuals).all()


@pytest.mark.parametrize("m", [8, 24, 60])
@pytest.mark.parametrize("method", ["exact", "range"])
def test_blocks_of_every_shape(m, method, dtype):
    J = blocks(m, dtype)
    found = block_svds(side_by_side(J), T, 4, method=method)
    check(found, J, 4)
    assert found.converged
    assert found.method == method
    assert (found.residuals / found.S[:, :1].double()).max() < 1e-3
    if method == "exact":
        wanted = torch.linalg.svdvals(J.double())[:, :4]
        assert (found.S.double() - wanted).abs().max() <= {torch.float64: 1e-13, torch.float32: 1e-5}[dtype]


def test_the_same_left_range_serves_all_blocks_and_takes_fewer_columns():
    """400 rows, left vectors that the blocks share: a range of a few dozen columns finds every block's triplets."""
    Q = torch.linalg.qr(torch.randn(400, 12, dtype=torch.float64))[0]
    J = Q @ blocks(12, torch.float64)
    found = block_svds(side_by_side(J), T, 3, method="range")
    check(found, J, 3)
    assert found.settings["columns"] < 100
    assert found.products < 400
    # One block's own direction, which no other shares and whose size is a millionth: it is not lost.
    J[1] = 1e-6 * torch.randn(400, 1, dtype=torch.float64) @ torch.randn(1, D, dtype=torch.float64)
    check_one = block_svds(side_by_side(J), T, 1, method="range")
    check(check_one, J, 1)
    assert (check_one.residuals / check_one.S).max() <= 1e-3


def test_a_range_that_finds_no_end_is_completed():
    """Flat spectra: nothing short of all rows meets the tolerance."""
    J = torch.stack([torch.linalg.qr(torch.randn(80, D, dtype=torch.float64))[0] for _ in range(T)])
    found = block_svds(side_by_side(J), T, 5, method="range", tol=1e-8)
    check(found, J, 5)
    assert found.converged
    assert found.settings["columns"] == 80


def test_what_a_range_misses_is_in_the_residual(monkeypatch):
    """A basis that is stopped too early says so: the bound covers the truth, which is far above the tolerance."""
    monkeypatch.setattr("specxai.svd.shared._Solver._holds", lambda self, found: True)
    J = blocks(200, torch.float64, decay=0.99)
    found = block_svds(side_by_side(J), T, 4, method="range")
    assert found.settings["columns"] < 200
    check(found, J, 4)
    assert (found.residuals / found.S[:, :1]).max() > 1e-3


def test_a_narrow_cut_is_decomposed_in_its_place(dtype):
    """m = 300 through 10 dimensions: ten columns of the left factor and ten of the right one."""
    A, B = torch.randn(300, 10, dtype=dtype), torch.randn(10, T * D, dtype=dtype)
    found = block_svds(ComposedOperator(DenseOperator(A), DenseOperator(B)), T, 4)
    check(found, (A @ B).reshape(300, T, D).transpose(0, 1), 4)
    assert found.settings["width"] == 10
    assert found.products < 90


def test_blocks_that_do_not_fit_are_made_in_groups():
    J, item, column = blocks(24, torch.float64), 8, T * D * 8
    least = item * 3 * T * (24 + D) + 2 * column * 40 + item * D * 24 + 2 * column
    whole, grouped = (block_svds(side_by_side(J), T, 3, max_memory=memory)
                      for memory in (None, least + 3 * item * D * 24))
    check(grouped, J, 3)
    assert torch.allclose(grouped.S, whole.S, rtol=1e-13)
    assert grouped.products == whole.products + 2 * (24 + 16)
    with pytest.raises(MemoryError, match=rf"at least {least / 2**20:.1f} MiB"):
        block_svds(side_by_side(J), T, 3, max_memory=least - 1)


def test_blocks_of_zeros_and_of_low_rank_are_filled_with_zeros(dtype):
    J = blocks(12, dtype)
    J[2], J[4] = 0, J[4, :, :1] * J[4, :1]
    found = block_svds(side_by_side(J), T, 3)
    assert not found.S[2].any()
    assert not found.U[2].any()
    assert not found.V[2].any()
    assert not found.residuals[2].any()
    assert found.S[4, 0] > 0
    assert not found.S[4, 1:].any()


@pytest.mark.parametrize("method", ["exact", "range"])
def test_an_operator_of_zeros_or_of_less_rank_than_asked_for(method):
    found = block_svds(side_by_side(torch.zeros(T, 12, D)), T, 3, method=method)
    assert found.S.shape == (T, 3)
    assert not found.S.any()
    assert found.U.shape == (T, 12, 3)
    assert found.converged
    J = torch.randn(12, 2, dtype=torch.float64) @ torch.randn(T, 2, D, dtype=torch.float64)
    found = block_svds(side_by_side(J), T, 3, method=method)
    assert (found.S[:, :2] > 0).all()
    assert not found.S[:, 2].any()
    assert torch.allclose(found.S[:, :2], torch.linalg.svdvals(J)[:, :2])


def test_tiny_and_huge_operators(dtype):
    J = blocks(12, dtype)
    wanted = torch.linalg.svdvals(J.double())[:, :2]
    for scale in (1e-25, 1e25):
        found = block_svds(side_by_side(J * scale), T, 2)
        assert torch.allclose(found.S.double() / scale, wanted, rtol=1e-4)
        assert (found.residuals / found.S[:, :1].double()).max() < 1e-3


def test_bad_arguments():
    with pytest.raises(ValueError, match="no 3 blocks of equal size"):
        block_svds(DenseOperator(torch.ones(2, 4)), 3, 1)
    with pytest.raises(ValueError, match="not finite"):
        block_svds(DenseOperator(torch.full((2, 4), torch.inf)), 2, 1)


@pytest.mark.parametrize("shape", [(30, 7), (7, 30)])
def test_leading_of_one_block(shape, dtype):
    block = torch.randn(shape, dtype=torch.float64)
    Y, S, V = leading(block, 3, 0.0, dtype)
    assert torch.allclose(S, torch.linalg.svdvals(block)[:3], rtol=1e-12)
    assert torch.allclose(block @ Y, V * S, atol=1e-12)
    assert torch.allclose(block.mT @ V, Y * S, atol=1e-12)
