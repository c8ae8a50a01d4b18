"""Batches of dense matrices: each decomposed as by itself, with bounds that hold."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from specxai.svd import dense as module
from specxai.svd.dense import dense_svds
from specxai.svd.orth import leading_eigh


def of(found, i):
    """Matrix i's result."""
    k = int(found.counts[i])
    return SimpleNamespace(rank=k, U=found.U[i, :, :k], S=found.S[i, :k].to(found.U.dtype), V=found.V[i, :, :k],
                           residuals=found.residuals[i, :k], error=float(found.errors[i]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(70, 90), (90, 70), (60, 60)])
@pytest.mark.parametrize("rank", [None, 7, 1000])
def test_every_spectrum_at_once(kit, shape, rank, dtype):
    R = torch.stack([kit.prescribed(spectrum, *shape, dtype) for spectrum in kit.spectra.values()])
    found = dense_svds(R, rank)
    for i, matrix in enumerate(R):
        result = of(found, i)
        kit.check(matrix, result)
        true = torch.linalg.svdvals(matrix.double())
        wanted = min(int((true > float(found.floors[i])).sum()), rank or min(shape))
        assert abs(len(result.S) - wanted) <= 1  # a value on the floor
        assert torch.linalg.norm(matrix.double()) == pytest.approx(float(found.norms[i]), rel=1e-6)
        assert (result.residuals <= 4 * found.floors[i]).all()


def test_a_tolerance_alone_takes_as_many_as_it_needs(kit):
    spectra = [kit.spectra[name] for name in ("flat", "steep", "deficient")]
    R = torch.stack([kit.prescribed(spectrum, 60, 80, torch.float64) for spectrum in spectra])
    found = dense_svds(R, tol=0.1)
    for i, matrix in enumerate(R):
        k, tails = int(found.counts[i]), torch.linalg.svdvals(matrix).square().flip(0).cumsum(0).flip(0).sqrt()
        assert k == int((tails > 0.1 * tails[0]).sum())


def test_what_a_matrix_stands_for_widens_its_bounds():
    R = torch.randn(2, 5, 8, dtype=torch.float64)
    plain, loose = dense_svds(R, 3), dense_svds(R, 3, rounding=torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert torch.equal(plain.residuals[0], loose.residuals[0])
    assert (loose.residuals[1] >= 0.5).all()
    assert loose.errors[1] == pytest.approx(float(plain.errors[1]) + 0.5)


@pytest.mark.parametrize("size, k", [(40, 3), (40, 30), (5, 5)])
def test_leading_eigenvectors_of_a_batch(size, k):
    A = torch.randn(3, 2 * size, size, dtype=torch.float64)
    G = A.mT @ A
    X = leading_eigh(G, k)
    assert X.shape == (3, size, k)
    values = torch.linalg.eigvalsh(G).flip(1)[:, :k]
    assert (G @ X - X * values[:, None]).abs().max() <= 1e-11 * values.max()


def test_nearly_equal_values_beside_a_large_one_descend(kit):
    spectrum = torch.cat([torch.tensor([1e6]), torch.ones(39)])
    R = torch.stack([kit.prescribed(spectrum, 60, 40, torch.float32) for _ in range(3)])
    S = dense_svds(R).S
    assert (S[:, :-1] >= S[:, 1:]).all()


@pytest.mark.parametrize("rounding", [0.0, torch.tensor([0.0, 0.5, 0.0, 0.25, 1.0])])
def test_a_few_matrices_at_a_time_are_as_all_at_once(monkeypatch, rounding):
    R = torch.randn(5, 20, 30)
    whole = dense_svds(R, 4, rounding=rounding)
    monkeypatch.setattr(module, "AT_ONCE", 2 * R[0].nbytes)
    parts = dense_svds(R, 4, rounding=rounding)
    for name, value in vars(whole).items():
        assert torch.equal(getattr(parts, name), value), name
