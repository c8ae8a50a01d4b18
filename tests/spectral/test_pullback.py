"""Pullbacks of layers against the dense Jacobian that autograd makes of the model up to there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.errors import LayerError
from specxai.spectral import Decomposition


@pytest.fixture(autouse=True)
def _real_solver(solver):
    solver.use(specxai.svd.svd)  # where the rest of this folder has a dense one


class Net(nn.Module):
    """A U-Net in miniature: an image, a time beside it, a middle block, a skip round it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.mid, self.up = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 1, 1), nn.Conv2d(6, 4, 3, 1, 1)
        self.norm, self.time = nn.GroupNorm(2, 4), nn.Linear(1, 4)

    def forward(self, sample, timestep: float = 1.0):
        h = self.norm(self.down(sample)) + self.time(torch.full((1, 1), timestep, dtype=sample.dtype))[:, :, None, None]
        h = nn.functional.silu(h)
        return {"sample": nn.functional.interpolate(self.up(torch.tanh(self.mid(h))) + h, scale_factor=2.0)}


@pytest.fixture
def net():
    return Net().double().eval()


@pytest.fixture
def x():
    return torch.randn(1, 2, 6, 6, dtype=torch.float64)


def dense(net, x, layer: str | None, **kwargs) -> torch.Tensor:
    """∂h/∂x (m, n) by autograd."""
    def h(x):
        found = []
        if layer is None:
            return net(x, **kwargs)["sample"].flatten()
        handle = net.get_submodule(layer).register_forward_hook(lambda module, given, output: found.append(output))
        net(x, **kwargs)
        handle.remove()
        return found[0].flatten()

    return torch.autograd.functional.jacobian(h, x).reshape(-1, x.numel())


def check(p, J: torch.Tensor, k: int) -> None:
    _, S, Vh = torch.linalg.svd(J)
    assert (p.S - S[:k]).abs().max() <= 1e-10 * S[0]
    assert p.V.shape == (J.shape[1], k)
    assert p.U.shape == (len(J), k)
    V = p.V / p.V.norm(dim=0)
    assert (V - Vh[:k].T @ (Vh[:k] @ V)).norm() <= 1e-8  # the same space
    assert (J @ p.V - p.U * p.S).norm(dim=0).max() <= p.residuals.max() + 1e-13
    assert bool((p.residuals <= 1e-8 * S[0]).all())


@pytest.mark.parametrize("method", ["auto", "krylov"])
@pytest.mark.parametrize("layer", ["mid", None])
def test_leading_directions_of_a_layer(net, x, layer, method):
    p = specxai.pullback(net, x, layer, rank=4, method=method, tol=1e-11, output="sample")
    check(p, dense(net, x, layer), 4)
    assert bool((p.projections >= 0).all())


def test_arguments_beside_x(net, x):
    p = specxai.pullback(net, x, "mid", rank=3, kwargs={"timestep": -2.0}, tol=1e-11)
    check(p, dense(net, x, "mid", timestep=-2.0), 3)
    assert (p.S - specxai.pullback(net, x, "mid", rank=3, tol=1e-11).S).abs().max() > 1e-3


@pytest.mark.parametrize("layer", ["mid", None])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_a_mask_restricts_the_input(net, x, layer, kind):
    mask = torch.zeros(6, 6, dtype=kind)
    mask[1:3, 2:5] = 1
    p = specxai.pullback(net, x, layer, rank=3, mask=mask, tol=1e-11)
    keep = mask.bool().expand(2, 6, 6).flatten()
    check(p, dense(net, x, layer) * keep, 3)
    assert not p.V[~keep].any()
    assert p.settings["mask"] == 12
    assert p.local is None


def test_signs_do_not_depend_on_the_seed(net, x):
    first, second = (specxai.pullback(net, x, "mid", rank=3, method="krylov", tol=1e-12, seed=seed) for seed in (0, 1))
    assert torch.allclose(first.V, second.V, atol=1e-7)


def test_the_full_spectrum_of_a_generator():
    """12 latents, 192 pixels: twelve forward columns, and all triplets."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.ConvTranspose2d(12, 6, 4), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 3, 4, 2, 1),
                          nn.Tanh()).double().eval()
    z = torch.randn(1, 12, 1, 1, dtype=torch.float64)
    p = specxai.pullback(model, z, rank=None)
    J = torch.autograd.functional.jacobian(model, z).reshape(192, 12)
    check(p, J, len(p.S))
    assert len(p.S) == 12
    assert p.method == "exact"
    assert p.layer == "output"


def test_a_local_keeps_what_was_found(net, x):
    local = specxai.linearize(net, x)
    p = specxai.pullback(local, layer="mid", rank=3)
    assert p.local is local
    assert len(local.decompositions) == 1
    masked = specxai.pullback(local, layer="mid", rank=3, mask=torch.eye(6))
    assert len(local.decompositions) == 1
    assert masked.S[0] < p.S[0]
    assert specxai.pullback(local, rank=2).layer == "output"


def test_a_neighbour_is_a_start(net, x):
    p = specxai.pullback(net, x, "mid", rank=3, method="krylov", tol=1e-10)
    near = specxai.pullback(net, x + 1e-4, "mid", rank=3, method="krylov", tol=1e-10, start=p)
    check(near, dense(net, x + 1e-4, "mid"), 3)


def test_files(net, x, tmp_path):
    p = specxai.pullback(net, x, "mid", rank=3, mask=torch.ones(6, 6))
    p.save(tmp_path / "p.safetensors")
    back = Decomposition.load(tmp_path / "p.safetensors")
    assert torch.equal(back.V, p.V)
    assert back.settings["mask"] == 72


@pytest.mark.parametrize("kind, given, words", [
    (LayerError, {"layer": "middle"}, "middle"),
    (TypeError, {"layer": "mid", "mask": [1, 0]}, "mask is a tensor"),
    (ValueError, {"layer": "mid", "mask": torch.ones(5, 6)}, "does not broadcast"),
    (ValueError, {"layer": "mid", "mask": torch.zeros(6, 6)}, "no unit"),
    (ValueError, {"layer": "mid", "mask": torch.full((6, 6), 0.5)}, "other than 0 and 1"),
    (ValueError, {"layer": "mid", "rank": 0}, "rank=0"),
    (ValueError, {"layer": "mid", "tol": -1.0}, "tol"),
])
def test_bad_input_is_one_clear_line(net, x, kind, given, words):
    with pytest.raises(kind, match=words):
        specxai.pullback(net, x, **given)


def test_x_belongs_to_a_model_and_not_to_a_local(net, x):
    with pytest.raises(TypeError, match="already belongs to one input"):
        specxai.pullback(specxai.linearize(net, x), x, layer="mid")
    with pytest.raises(TypeError, match="needs x="):
        specxai.pullback(net, layer="mid")
