"""A lens of rank k is the truncated SVD of J_l − a I, found without J_l."""

from __future__ import annotations

import pytest
import torch

import specxai
from small import WIDTH, relative, small_gpt, some_prompts

PROMPTS = some_prompts((20, 14, 20))


@pytest.fixture(scope="module")
def both():
    model = small_gpt(torch.float64)
    dense = specxai.lens.fit(model, PROMPTS, skip_first=5)
    return dense, specxai.lens.fit(model, PROMPTS, layers=[0, 2], skip_first=5, rank=6, tol=1e-8), model


@pytest.mark.parametrize("layer", [0, 2])
def test_it_is_the_truncated_svd(both, layer):
    dense, low, _ = both
    part = low.factors[layer]
    matrix = dense.J[layer] - part.scale * torch.eye(WIDTH, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(matrix)
    assert torch.allclose(part.S, S[:6], rtol=1e-7)
    assert relative(part.U @ part.U.T, U[:, :6] @ U[:, :6].T) <= 1e-5
    assert relative(part.V @ part.V.T, Vh[:6].T @ Vh[:6]) <= 1e-5
    assert (matrix @ part.V - part.U * part.S).norm(dim=0).double().le(part.residuals + 1e-12).all()
    assert part.residuals.max() <= 1e-8 * S[0]
    rest = S[6:].norm()
    assert rest <= part.error * (1 + 1e-9)
    assert torch.allclose((low.J[layer] - dense.J[layer]).norm(), rest, rtol=1e-6)


def test_a_is_about_the_mean_of_the_diagonal(both):
    dense, low, _ = both
    for layer, part in low.factors.items():
        wanted = dense.J[layer].diagonal().mean()
        spread = (dense.J[layer].norm() * 2**0.5 / (WIDTH * specxai.lens.lowrank.SIGNS**0.5)).item()
        assert abs(part.scale - wanted) <= 4 * spread


def test_little_memory_gives_the_same(both):
    _, low, model = both
    again = specxai.lens.fit(model, PROMPTS, layers=[2], skip_first=5, rank=6, tol=1e-8, max_memory=400_000)
    assert relative(again.J[2], low.J[2]) <= 1e-7


def test_it_reads_merges_and_round_trips(both, tmp_path):
    _, low, model = both
    h = torch.randn(3, WIDTH, dtype=torch.float64)
    assert relative(low.transport(h, 2), h @ low.J[2].T) <= 1e-12
    assert relative(low.readout(h, 2), model.head(model.norm(h @ low.J[2].T))) <= 1e-12
    low.save(tmp_path / "low.pt")
    loaded = specxai.lens.load(tmp_path / "low.pt")
    assert torch.equal(loaded.factors[0].S, low.factors[0].S)
    assert torch.equal(loaded.J[0], low.J[0])
    assert torch.load(tmp_path / "low.pt", weights_only=True)["J"][0].dtype == torch.float16
    merged = low.merge(loaded)
    assert merged.factors == {}
    assert relative(merged.J[2], low.J[2]) <= 1e-12
    assert repr(low) == f"Lens(layers 0, 2, d {WIDTH}, 3 prompts, rank 6)"
