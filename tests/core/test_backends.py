"""The native backend is the reference on every operator between any two steps, and says why where it cannot run."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import specxai
from nets import NETS, build
from specxai import backends, native
from tolerances import assert_close

needs_native = pytest.mark.skipif(not native.available()[0], reason=f"no compiled kernels: {native.available()[1]}")


engines = pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "torch"])


def pair(name: str, dtype: torch.dtype, engine: str = "native"):
    model, x = build(name, dtype)
    captured = specxai.capture(model, x)
    return captured.linearize(x, backend=engine), captured.linearize(x, backend="reference")


@engines
@pytest.mark.parametrize("name", NETS)
def test_every_split(engine, name, dtype):
    ours, wanted = pair(name, dtype, engine)
    for layer in ours.layers:
        for part in ("right", "left", "bypass"):
            got, want = getattr(ours.split(layer), part), getattr(wanted.split(layer), part)
            assert got.is_zero == want.is_zero
            assert_close(got.to_dense(), want.to_dense(), factor=2)
            assert_close(got.T.to_dense(), want.T.to_dense(), factor=2)


@needs_native
@pytest.mark.parametrize("name", NETS)
def test_biases_cuts_and_flips(name):
    ours, wanted = pair(name, torch.float64)
    for (layer, got), (_, want) in zip(ours.bias_contributions().items(), wanted.bias_contributions().items(),
                                       strict=True):
        assert_close(got, want, factor=4), layer
    assert ours.bias_contributions(1) == pytest.approx(wanted.bias_contributions(1), abs=1e-13)
    direction = torch.randn_like(ours.input)
    assert ours.first_flip(direction) == pytest.approx(wanted.first_flip(direction))
    got, want = ours.jacobian.narrowest_cut(), wanted.jacobian.narrowest_cut()
    assert (got is None) == (want is None)
    if got is not None:
        assert got.width == want.width
        assert_close((got.left @ got.right).to_dense(), wanted.jacobian.to_dense(), factor=10)


@needs_native
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=3, max_size=5), st.integers(1, 70), st.integers(0, 2**16),
       st.sampled_from([-3.0, 0.0, 3.0]))
def test_perceptrons_of_any_width(widths, probes, seed, shift):
    """From all gates dead (shift −3) to all alive, one probe to more than a block."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        layers[-2].bias.data += shift
    model, x = nn.Sequential(*layers[:-1]).eval().double(), torch.randn(1, widths[0], dtype=torch.float64)
    captured = specxai.capture(model, x, verify=False)
    ours, wanted = captured.linearize(x, backend="native"), captured.linearize(x, backend="reference")
    for k, side in ((widths[0], "jacobian"), (widths[-1], "T")):
        block = torch.randn(k, probes, dtype=torch.float64)
        got, want = ((local.jacobian if side == "jacobian" else local.jacobian.T) @ block for local in (ours, wanted))
        assert (got - want).norm() <= 1e-13 * max(want.norm().item(), 1e-300)


@needs_native
def test_permuted_units_are_followed():
    """A permutation between the gate and the stage: the live units are not those of the gate any more."""

    class Flipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)).flip(1))

    model, x = Flipped().eval().double(), torch.randn(1, 4, dtype=torch.float64)
    got = specxai.linearize(model, x, backend="native").jacobian.to_dense()
    assert_close(got, torch.func.jacrev(model)(x).reshape(3, 4).detach())


def test_a_forced_backend_that_cannot_run_says_why(monkeypatch):
    model, x = build("perceptron")
    monkeypatch.setattr(native, "available", lambda: (False, "it was not built"))
    with pytest.raises(RuntimeError, match="'native' cannot run here: it was not built; use backend='auto'"):
        specxai.linearize(model, x, backend="native")
    assert specxai.linearize(model, x).backend == "reference"
    assert {name: ok for name, ok, _ in backends.describe()} == {
        "reference": True, "native": False, "torch": True, "cuda": False}


def test_other_dtypes_run_on_the_reference():
    ok, reason = backends.describe(dtype=torch.bfloat16)[1][1:]
    assert not ok
    assert "bfloat16" in reason or "not built" in reason
