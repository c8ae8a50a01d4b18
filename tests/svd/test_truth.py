"""Every solver against torch.linalg.svd, on spectra that are hard each in its own way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import specxai
from specxai.operators import DenseOperator


def test_certificates_bound_the_truth(kit, spectrum, shape, dtype, method):
    matrix = kit.prescribed(spectrum, *shape, dtype)
    result = specxai.svd(DenseOperator(matrix), rank=10, method=method, block_size=8)
    kit.check(matrix, result)
    assert result.method == method
    assert result.rank <= 10


def test_leading_values(kit, spectrum, shape, dtype, method):
    matrix = kit.prescribed(spectrum, *shape, dtype)
    result = specxai.svd(DenseOperator(matrix), rank=10, method=method, block_size=8)
    values = torch.linalg.svdvals(matrix.double())
    assert kit.is_rank(result.rank, values[:10], result.floor)
    # Residuals r leave values within r; 1e-5 λ₁ is the default tolerance.
    allowed = 2e-5 * float(values[0]) + result.floor
    assert float((result.S.double() - values[: result.rank]).abs().max() if result.rank else 0) <= allowed


def test_all_triplets(kit, spectrum, shape, dtype):
    matrix = kit.prescribed(spectrum, *shape, dtype)
    for method in ("exact", "krylov"):
        result = specxai.svd(DenseOperator(matrix), method=method)
        real = kit.check(matrix, result)
        assert kit.is_rank(result.rank, real.values, result.floor)
        assert result.error <= 20 * (result.floor + float(torch.linalg.norm(real.values[result.rank :])))


def test_a_cluster_is_found_as_a_subspace(kit, shape, dtype, method):
    matrix = kit.prescribed(kit.spectra["clustered"], *shape, dtype)
    result = specxai.svd(DenseOperator(matrix), rank=10, method=method, block_size=16)
    # The ten vectors mix freely, their span does not: sin θ ≤ residual / gap (Davis & Kahan), in Frobenius norm.
    left, right = (kit.orthonormal(shape[0], 60, 7)[:, :10], kit.orthonormal(shape[1], 60, 8)[:, :10])
    sine = 2 * float(torch.linalg.norm(result.residuals)) / 2.0 + 50 * torch.finfo(dtype).eps
    for got, want in ((result.U.double(), left), (result.V.double(), right)):
        assert float(torch.linalg.norm(got @ got.mT - want @ want.mT)) <= 2**0.5 * 2 * sine


def test_tolerance_bounds_the_error(kit, spectrum, shape, dtype, method):
    matrix = kit.prescribed(spectrum, *shape, dtype)
    for tol in (0.3, 1e-2):
        result = specxai.svd(DenseOperator(matrix), tol=tol, method=method, block_size=8)
        real = kit.check(matrix, result)
        assert result.converged
        assert real.error <= tol * float(torch.linalg.norm(matrix.double()))


def test_tolerance_with_rank_bounds_residuals(kit, shape, dtype, method):
    matrix = kit.prescribed(kit.spectra["steep"], *shape, dtype)
    for tol in (1e-2, 1e-4):
        result = specxai.svd(DenseOperator(matrix), rank=5, tol=tol, method=method, block_size=4)
        assert result.converged
        assert float(result.residuals.max()) <= max(tol * float(result.S[0]), 3 * result.floor)


def test_restarts_reach_the_same_values(kit, dtype):
    matrix = kit.prescribed(torch.linspace(2, 1, 150), 200, 160, dtype)
    operator = DenseOperator(matrix)
    result = specxai.svd(operator, rank=5, method="krylov", block_size=4, max_basis=20, tol=1e-4)
    assert result.settings["basis"] <= 24
    assert result.converged
    real = kit.check(matrix, result)
    assert float((result.S.double() - real.values[:5]).abs().max()) <= 4e-4


def test_gives_up_and_says_so(kit, dtype):
    matrix = kit.prescribed(torch.linspace(2, 1.9, 150), 200, 160, dtype)
    for method in ("krylov", "subspace"):
        result = specxai.svd(DenseOperator(matrix), rank=5, method=method, block_size=4, tol=1e-7, max_products=60)
        assert not result.converged
        assert "NOT converged" in repr(result)
        kit.check(matrix, result)
    result = specxai.svd(DenseOperator(matrix), tol=1e-3, method="krylov", block_size=4, max_basis=40)
    assert not result.converged
    kit.check(matrix, result)


def test_warm_start_saves_products(kit, dtype):
    matrix = kit.prescribed(0.9 ** torch.arange(60.0), 100, 80, dtype)
    operator = DenseOperator(matrix)
    cold = specxai.svd(operator, rank=8, method="subspace", block_size=8)
    warm = specxai.svd(operator, rank=8, method="subspace", block_size=8, start=cold.V)
    assert warm.products < cold.products
    kit.check(matrix, warm)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    rank=st.none() | st.integers(1, 12),
    decay=st.sampled_from([0.0, 1e-3, 0.5, 1.0]),
    method=st.sampled_from(["auto", "exact", "krylov", "subspace"]),
    double=st.booleans(),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
)
def test_small_sizes(m, n, rank, decay, method, double, seed, scale):
    dtype = torch.float64 if double else torch.float32
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(m, n, generator=generator, dtype=dtype) * scale * decay ** torch.arange(n, dtype=dtype)
    rank = rank and min(rank, m, n)
    result = specxai.svd(DenseOperator(matrix), rank=rank, method=method, seed=seed, block_size=4)
    values = torch.linalg.svdvals(matrix.double())
    U, S, V = (t.double() for t in (result.U, result.S, result.V))
    assert torch.linalg.norm(matrix.double() - (U * S) @ V.mT) <= result.error
    if result.rank:
        assert bool(((S[:, None] - values).abs().amin(1) <= result.residuals).all())


def test_an_operator_whose_products_cost_nothing():
    class Diagonal(DenseOperator):
        flops = 0

    matrix = torch.diag(torch.linspace(2, 1, 400))
    result = specxai.svd(Diagonal(matrix), rank=3, tol=1e-2, method="krylov")
    assert float((result.S - torch.linalg.svdvals(matrix)[:3]).abs().max()) <= float(result.residuals.max())


@pytest.mark.parametrize("shape", [(150, 100), (100, 150)])
def test_a_flat_spectrum_is_taken_whole(kit, shape):
    spectrum = 1 - 1e-6 * torch.arange(100.0)
    operator = DenseOperator(kit.prescribed(spectrum, *shape, torch.float32))
    whole = specxai.svd(operator, rank=100, method="krylov")
    assert whole.rank == 100
    assert whole.converged
    kit.check(operator.matrix, whole)
    part = specxai.svd(operator, tol=0.3, method="krylov")
    assert part.converged
    assert part.relative_error <= 0.3


@pytest.mark.parametrize("low", [1e-4, 1e-8, 1e-13])
@pytest.mark.parametrize("shape", [(60, 200), (200, 60)])
def test_an_exact_error_bounds_two_levels_in_float64(kit, low, shape):
    for seed in range(20):
        spectrum = torch.cat([torch.ones(20), torch.full((40,), low)]).double()
        matrix = kit.prescribed(spectrum, *shape, torch.float64, seed=seed)
        kit.check(matrix, specxai.svd(DenseOperator(matrix), method="exact"))
