"""The spectral layer on a real Local with the real solver."""

import pytest
import torch

import specxai
from specxai.spectral import Explanation, explain


@pytest.fixture
def solver():
    """The real one: overrides the dense stand-in."""


class Residual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.relu = torch.nn.ReLU()
        self.body = torch.nn.Conv2d(6, 6, 3, padding=1)
        self.head = torch.nn.Linear(6, 4)

    def forward(self, x):
        h = self.stem(x).relu()
        h = h + self.relu(self.body(h))
        return self.head(h.mean((2, 3)))


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    return Residual().double().eval(), torch.randn(1, 3, 7, 6, dtype=torch.float64)


@pytest.mark.parametrize("rank", [None, 3])
def test_identity_with_a_bypass(case, rank):
    model, x = case
    e = explain(model, x, layer="relu", target=2, rank=rank)
    assert e.completeness < 1e-12
    assert e.exactness < 1e-12
    assert e.bypass != 0
    assert e.output == pytest.approx(float(model(x)[0, 2]))
    assert sum(e.bias_contributions.values()) == pytest.approx(e.bias)
    assert (e.projections >= 0).all()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[0, 2], leaf)
    torch.testing.assert_close(e.gradient, gradient[0])
    if rank is None:
        assert abs(e.remainder) < 1e-10


def test_module_object_and_local(case):
    model, x = case
    at_x = specxai.linearize(model, x)
    by_name, by_module = (explain(at_x, layer=layer, rank=None) for layer in ("body", model.body))
    assert by_name.layer == by_module.layer == "body"
    torch.testing.assert_close(by_name.alpha, by_module.alpha)


def test_surgery_on_the_real_network(case):
    model, x = case
    e = explain(model, x, layer="relu", target=0, rank=None)
    assert torch.allclose(e.surgery(keep=slice(None)).output, model(x))
    s = e.surgery(drop=0)  # the network is linear after this layer
    assert s.delta == pytest.approx(s.delta_linear, abs=1e-10)


def test_symbolic_in_the_same_region(case, tmp_path):
    model, x = case
    e = explain(model, x, layer="relu", target=1, rank=5)
    e.save(tmp_path / "e.safetensors")
    near = x * (1 + 1e-7)
    for one in (e, Explanation.load(tmp_path / "e.safetensors")):
        assert one.symbolic(reduced=True).evaluate(near) == pytest.approx(float(model(near)[0, 1]), abs=1e-11)


def test_no_components():
    """A layer whose gates are all closed has no spectrum, and everything still answers."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4)).eval().double()
    with torch.no_grad():
        model[0].bias.fill_(-100)
    e = explain(model, torch.rand(1, 6, dtype=torch.float64), layer="1", target=0, rank=3)
    assert e.right_vectors.shape == (0, 6)
    assert e.left_vectors.shape == (0, 5)
    assert e.top(3) == []
    assert e.table() == []
    assert e.symbolic().evaluate(e.x) == pytest.approx(e.output)
    assert e.surgery(scale={}, keep=[]).output_linear == pytest.approx(e.output)
    assert "Explanation" in repr(e)
    assert e.completeness <= 1e-15
