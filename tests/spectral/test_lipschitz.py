"""Spectral norms of Jacobians over a batch, from below and above, against dense ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import specxai
from specxai.spectral.lipschitz import _above


def dense(net, X) -> torch.Tensor:
    return torch.stack([torch.linalg.matrix_norm(torch.func.jacrev(net)(x).detach().reshape(-1, x.numel()), 2)
                        for x in X.split(1)])


def test_norms_of_small_networks_are_exact(dtype):
    net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).eval().to(dtype)
    X = torch.randn(5, 6, dtype=dtype)
    found, wanted = specxai.lipschitz(net, X), dense(net, X).double()
    assert ((found.S - wanted).abs() <= found.residuals + 1e-6 * wanted).all()
    assert (found.lower <= wanted * (1 + 1e-6)).all()
    assert (found.upper >= wanted * (1 - 1e-6)).all()
    assert ((found.upper - found.lower) <= 1e-4 * wanted).all()
    assert torch.allclose(found.V.norm(dim=1), torch.ones(5, dtype=dtype))


def test_norms_of_larger_networks_lie_between_the_bounds():
    """768 pixels to 1,536 numbers with a flat spectrum: Krylov, and its bound from above within some per cent."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 6, 3, padding=1)).eval().double()
    X = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    found, wanted = specxai.lipschitz(net, X, tol=1e-6), dense(net, X)
    assert (found.lower <= wanted).all()
    assert (wanted <= found.upper).all()
    assert (found.upper <= 1.1 * wanted).all()


def test_what_krylov_says_from_above():
    """By hand: n = 100, δ = 1e-5, 8 starts, q = 20: √ε = log(1.648 · 10 · 1e5^(1/8)) / 39 = 0.108706."""
    found = SimpleNamespace(method="krylov", rank=1, error=50.0, V=torch.zeros(100, 1),
                            settings={"depth": 20, "block_size": 8, "basis": 160, "max_basis": 512})
    assert _above(found, 2.0) == pytest.approx(2 / (1 - 0.108706**2) ** 0.5, rel=1e-5)
    found.settings["max_basis"] = 100  # restarted: the theorem does not hold, what is left out does
    assert _above(found, 2.0) == 50
    found.settings.update(max_basis=512, depth=2, basis=16)  # too few blocks to say anything
    assert _above(found, 2.0) == 50


def test_a_constant_is_not_stretched():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    with torch.no_grad():
        net[0].bias.fill_(-100.0)
    found = specxai.lipschitz(net, torch.randn(2, 4))
    assert found.S.tolist() == found.lower.tolist() == [0, 0]
    assert (found.upper < 1e-5).all()


@pytest.mark.parametrize("X", [torch.ones(0, 4), torch.tensor(1.0), [1.0]])
def test_no_batch(X):
    with pytest.raises(ValueError, match="a batch of inputs"):
        specxai.lipschitz(nn.Linear(4, 3).eval(), X)
