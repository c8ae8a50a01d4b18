"""Linear regions: the distance to the first flip is exact, and beyond it the region is another."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import specxai
from nets import NETS, build
from specxai.affine.regions import Flip


class Call(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def assert_first_flip(local: specxai.Local, direction: torch.Tensor) -> Flip:
    """The map holds until just before the flip and not just after it, where that layer's gate has changed."""
    flip = local.first_flip(direction)
    assert 0 < flip < math.inf
    assert local.same_region(local.input + (flip * (1 - 1e-9)) * direction)
    beyond = local.differing_gates(local.input + (flip * (1 + 1e-9)) * direction)
    assert flip.unit in beyond[flip.layer]
    return flip


@pytest.mark.parametrize("name", NETS)
def test_first_flip_of_nets(name):
    model, x = build(name)
    local = specxai.linearize(model, x)
    for _ in range(3):
        assert_first_flip(local, torch.randn_like(x))


@pytest.mark.parametrize("function, shape", [
    (F.relu6, (1, 5)), (lambda z: F.hardtanh(z, -0.2, 0.1), (1, 5)), (lambda z: z.clamp(max=0.1), (1, 5)),
    (torch.abs, (1, 5)), (F.hardsigmoid, (1, 5)), (lambda z: F.leaky_relu(z, 0.3), (1, 5)),
    (lambda z: F.max_pool2d(z, 3, 2, 1, ceil_mode=True), (1, 2, 8, 7)),
    (lambda z: F.max_pool2d(z, 2, 1, dilation=2), (1, 2, 8, 7)), (lambda z: F.max_pool1d(z, 3, 2), (1, 2, 9)),
    (lambda z: z.max(2).values, (1, 2, 5)), (lambda z: z.min(1, keepdim=True)[0], (1, 5, 2)),
], ids=["relu6", "hardtanh", "clamp", "abs", "hardsigmoid", "leaky", "pool", "dilated pool", "pool 1d", "max", "min"])
def test_first_flip_of_each_gate(function, shape):
    x = torch.randn(shape, dtype=torch.float64)
    local = specxai.linearize(Call(function).eval(), x)
    for _ in range(5):
        assert_first_flip(local, torch.randn_like(x))


def test_the_distance_of_a_gate_by_hand():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.copy_(torch.tensor([1.0, -5.0]))
    flip = specxai.linearize(model, torch.zeros(1, 2, dtype=torch.float64)).first_flip(torch.tensor([-2.0, 1.0]))
    assert (float(flip), flip.layer, flip.unit) == (0.5, "1", 0)
    assert repr(flip) == "Flip(0.5, layer='1', unit=0)"


def test_a_direction_that_meets_no_gate():
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0]]))
    flip = specxai.linearize(model, torch.ones(1, 2)).first_flip(torch.tensor([[0.0, 1.0]]))
    assert (flip, flip.layer) == (math.inf, None)
    assert specxai.linearize(nn.Linear(2, 1).eval(), torch.ones(1, 2)).first_flip(torch.ones(2)) == math.inf


def test_comparisons_are_gates():
    local = specxai.linearize(Call(lambda z: z * (z > 0)).eval(), torch.tensor([[1.0, -1.0]]))
    assert local.same_region(torch.tensor([[2.0, -3.0]]))
    assert not local.same_region(torch.tensor([[2.0, 3.0]]))
    with pytest.raises(ValueError, match="comparisons have no crossing rule"):
        local.first_flip(torch.ones(1, 2))


def test_smooth_nets_have_no_regions():
    local = specxai.linearize(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()).eval(), torch.ones(1, 2))
    for question in (local.same_region, local.first_flip):
        with pytest.raises(ValueError, match="a piecewise-linear net with a rule for every gate, but 1 is smooth"):
            question(torch.ones(1, 2))


@pytest.mark.parametrize("function", [
    lambda z: z * z, lambda z: z * z.relu(), lambda z: z + z.detach(), lambda z: z * z.mean().clamp(0, 1),
], ids=["square", "product", "stopped gradient", "gated channel"])
def test_maps_that_change_without_a_gate_have_no_regions(function):
    local = specxai.linearize(Call(function).eval(), torch.tensor([[1.0, -1.0]]))
    for question in (local.same_region, local.first_flip):
        with pytest.raises(ValueError, match="need a piecewise-linear net"):
            question(torch.ones(1, 2))


@pytest.mark.parametrize("direction, message", [
    (torch.full((1, 6), torch.nan), "direction holds NaN"),
    (torch.zeros(1, 6), "direction is zero"), (torch.ones(1, 5), r"direction has shape \(1, 5\)"),
])
def test_bad_directions(direction, message):
    with pytest.raises(ValueError, match=message):
        specxai.linearize(*build("perceptron")).first_flip(direction)
