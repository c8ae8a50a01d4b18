"""`gates="frozen"` is the Jacobian of the same model with its factors detached by hand, and b the true biases alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import specxai
from tolerances import RELATIVE
from twins import TWINS, pair


def true(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.jacobian(model, x).reshape(-1, x.numel())


@pytest.mark.parametrize("name", TWINS)
def test_it_is_the_jacobian_of_the_model_detached_by_hand(name):
    model, by_hand, x = pair(name)
    assert torch.allclose(model(x), by_hand(x), rtol=1e-12, atol=1e-12)
    local, wanted = specxai.linearize(model, x, gates="frozen"), true(by_hand, x)
    assert (local.jacobian.to_dense() - wanted).norm() <= 1e-12 * wanted.norm()
    assert local.generic_nodes == []
    assert local.exactness <= 1e-12
    assert local.agreement <= 1e-12
    assert local.agreement_details.witness == "frozen gates"
    assert (wanted - true(model, x)).norm() > 1e-3 * wanted.norm()  # or the test would show nothing


@pytest.mark.parametrize("name", TWINS)
def test_the_true_biases_are_the_only_offsets(name):
    model, by_hand, x = pair(name)
    local = specxai.linearize(model, x, gates="frozen")
    parts = local.bias_contributions()
    modules = dict(model.named_modules())
    # Where the model itself concatenates a constant token, that is one too.
    assert all(getattr(modules[layer], "bias", None) is not None for layer in parts if layer != "cat")
    expected = model(x) - (true(by_hand, x) @ x.flatten()).reshape(1, -1).reshape(model(x).shape)
    assert torch.allclose(sum(parts.values(), torch.zeros_like(expected)), expected, rtol=1e-11, atol=1e-12)
    if name == "llama":
        assert parts == {}


@pytest.mark.parametrize("name", TWINS)
def test_the_derivative_is_torchs(name):
    model, _, x = pair(name)
    local, wanted = specxai.linearize(model, x), true(model, x)
    assert (local.jacobian.to_dense() - wanted).norm() <= 1e-12 * wanted.norm()
    assert local.generic_nodes == []
    assert local.exactness <= 1e-12


@pytest.mark.parametrize("name", TWINS)
def test_in_single_precision(name):
    model, by_hand, x = pair(name)
    wanted = true(by_hand, x)
    local = specxai.linearize(model.float(), x.float(), gates="frozen")
    assert (local.jacobian.to_dense() - wanted).norm() <= 20 * RELATIVE[torch.float32] * wanted.norm()
    assert local.agreement <= local.agreement_details.tolerance <= 1e-3


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.before = function, nn.Linear(6, 6)

    def forward(self, x):
        return self.function(self.before(x))


def rms(z):
    return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-6)


def rms_by_hand(z):
    return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-6).detach()


def _normalised(z, held):
    centred = z - z.mean(-1, keepdim=True)
    return centred / (held(centred.square().mean(-1, keepdim=True)) + 1e-5).sqrt()


HELD = {  # what a model computes, and the same with its gate detached
    "norm of an activation": (lambda z: rms(F.gelu(z)), lambda z: rms_by_hand(_secant(F.gelu, z))),
    "norm by its own square": (lambda z: z / (z * z).mean(-1, keepdim=True).sqrt(),
                               lambda z: z / (z * z).mean(-1, keepdim=True).sqrt().detach()),
    "norm by a deviation": (lambda z: (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-3),
                            lambda z: (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-3).detach()),
    "layer norm, written out": (lambda z: _normalised(z, lambda s: s), lambda z: _normalised(z, torch.Tensor.detach)),
    "length": (lambda z: F.normalize(z, dim=-1), lambda z: z / z.norm(dim=-1, keepdim=True).detach()),
    "swish, written out": (lambda z: z * z.sigmoid(), lambda z: z * z.sigmoid().detach()),
    "gated linear unit": (lambda z: F.glu(z, -1), lambda z: z[..., :3] * z[..., 3:].sigmoid().detach()),
    "pattern times an activation": (lambda z: z.softmax(-1) * F.gelu(z.flip(-1)),
                                    lambda z: z.softmax(-1).detach() * _secant(F.gelu, z.flip(-1))),
    "pattern behind weights": (lambda z: (z.softmax(-1) @ torch.ones(6, 6).tril().to(z)) * z,
                               lambda z: (z.softmax(-1) @ torch.ones(6, 6).tril().to(z)).detach() * z),
    "norm of a pattern behind weights": (
        lambda z: rms(z.softmax(-1) @ torch.ones(6, 6).tril().to(z)),
        lambda z: rms_by_hand(z.softmax(-1) @ torch.ones(6, 6).tril().to(z))),
    "clipped": (lambda z: F.relu6(40 * z), lambda z: _secant(F.relu6, 40 * z)),
    "bounds that few reach": (lambda z: z.clamp(0.1, 0.3), lambda z: torch.where(
        z == z.clamp(0.1, 0.3), z, 0.1 + ((z.clamp(0.1, 0.3) - 0.1) / z).detach() * z)),
    "two values": (lambda z: z[..., :3] * z[..., 3:],
                   lambda z: (z[..., :3] * z[..., 3:].detach() + z[..., :3].detach() * z[..., 3:]) / 2),
    "two values as matrices": (lambda z: z.mT @ z, lambda z: (z.mT @ z.detach() + z.mT.detach() @ z) / 2),
}


def _secant(function, z):
    at_zero = function(torch.zeros_like(z))
    return at_zero + ((function(z) - at_zero) / z).detach() * z


@pytest.mark.parametrize("name", HELD)
def test_what_is_held(name):
    function, by_hand = HELD[name]
    model, detached, x = Function(function).double().eval(), Function(by_hand).double().eval(), torch.randn(
        1, 6, dtype=torch.float64)
    detached.load_state_dict(model.state_dict())
    local, wanted = specxai.linearize(model, x, gates="frozen"), true(detached, x)
    assert (local.jacobian.to_dense() - wanted).norm() <= 1e-12 * wanted.norm()
    assert local.exactness <= 1e-12
    assert local.generic_nodes == []


class Pooled(nn.Module):
    """Batch norm whose gradient comes back transposed, which torch's own backward gets wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 2), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).flatten(2).transpose(1, 2).softmax(-1)).tanh()


def test_the_witness_sees_past_torchs_wrong_strides():
    local = specxai.linearize(Pooled().double().eval(), torch.randn(1, 3, 4, 4).double(), gates="frozen")
    assert local.agreement <= 1e-13


def test_probabilities_that_multiply_nothing_keep_their_derivative():
    model, x = Function(lambda z: z.softmax(-1)).double().eval(), torch.randn(1, 6, dtype=torch.float64)
    local = specxai.linearize(model, x, gates="frozen")
    assert (local.jacobian.to_dense() - true(model, x)).norm() <= 1e-13


@pytest.mark.parametrize("function", [F.gelu, F.silu, torch.sigmoid, torch.tanh, F.mish, F.elu, F.softplus, F.relu6])
def test_secants_are_finite_at_zero(function):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), _Apply(function)).double().eval()
    local = specxai.linearize(model, torch.zeros(1, 3).double(), gates="frozen")
    assert torch.isfinite(local.jacobian.to_dense()).all()
    assert local.exactness <= 1e-12


class _Apply(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)
