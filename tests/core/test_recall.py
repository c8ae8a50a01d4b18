"""A recording is used again while the model is the same, and made again when anything of it has changed."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

import specxai
from nets import build
from specxai.capture import recording


def test_a_further_input_traces_nothing(monkeypatch):
    model, x = build("skip")
    captured = specxai.capture(model, x)
    monkeypatch.setattr(recording, "trace", None)
    x2 = torch.randn_like(x)
    assert torch.allclose(captured.linearize(x2).output, model(x2))
    assert torch.allclose(specxai.linearize(captured, x2).output, model(x2))


@pytest.fixture
def traces(monkeypatch):
    """The models that are traced from here on."""
    seen, trace = [], recording.trace

    def counted(model, *args):
        seen.append(model)
        return trace(model, *args)

    monkeypatch.setattr(recording, "trace", counted)
    return seen


def test_linearize_traces_a_model_once(traces):
    model, x = build("skip")
    for _ in range(3):
        x = torch.randn_like(x)
        assert torch.equal(specxai.linearize(model, x).output, model(x).detach())
    assert traces == [model]
    specxai.linearize(model, torch.cat([x, x], 3)[..., :6])  # the same shape
    assert len(traces) == 1


def changed_weights(model):
    with torch.no_grad():
        model[0].weight.mul_(2)


def changed_setting(model):
    model[1].negative_slope = 0.5


def changed_module(model):
    model[2] = nn.Linear(4, 2).double().eval()


def changed_code(model):
    model.register_forward_hook(lambda module, inputs, output: 2 * output)


@pytest.mark.parametrize("change, traced", [
    (changed_weights, 1), (changed_setting, 2), (changed_module, 2), (changed_code, 2)])
def test_a_changed_model_is_not_explained_as_it_was(change, traced, traces):
    model = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(), nn.Linear(4, 2)).eval().double()
    x = torch.randn(1, 3, dtype=torch.float64)
    specxai.linearize(model, x)
    change(model)
    local = specxai.linearize(model, x)
    assert torch.allclose(local.output, model(x))
    assert torch.allclose(local.jacobian.to_dense(), torch.func.jacrev(model)(x).reshape(2, 3))
    assert len(traces) == traced


def test_a_recalled_model_is_checked_again():
    model, x = build("perceptron")
    specxai.linearize(model, x)
    with pytest.raises(ValueError, match="training mode"):
        specxai.linearize(model.train(), x)
    with torch.no_grad():
        model.eval()[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"parameter 0.weight holds NaN"):
        specxai.linearize(model, x)


def test_a_setting_that_only_the_gradient_shows():
    class Switch(nn.Module):
        stop = False

        def forward(self, x):
            y = x.sigmoid()
            return x + (y.detach() if self.stop else y)

    model, x = Switch().eval(), torch.randn(1, 3)
    before = specxai.linearize(model, x).jacobian.to_dense()
    model.stop = True
    assert torch.equal(specxai.linearize(model, x).jacobian.to_dense(), torch.eye(3))
    assert not torch.equal(before, torch.eye(3))


def test_a_factor_that_changed_a_little():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = [1.0]  # not a setting that can be compared: the output tells

        def forward(self, x):
            return x * self.by[0]

    model, x = Scale().eval(), torch.randn(1, 3)
    specxai.linearize(model, x)
    model.by[0] = 1.0005
    assert torch.equal(specxai.linearize(model, x).output, model(x))


def test_a_further_input_costs_one_pass_of_the_graph_and_one_more_of_the_model_for_its_agreement():
    passes = []

    class Counts(nn.Linear):
        def forward(self, x):
            passes.append(1)
            return super().forward(x)

    model = Counts(3, 3).eval()
    specxai.linearize(model, torch.randn(1, 3))
    captured = next(iter(recording._RECALLED[model].values()))[2]
    runs, run = [], type(captured.program).run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(captured.program), "run", lambda *a, **k: runs.append(1) or run(*a, **k))
        passes.clear()
        specxai.linearize(model, torch.randn(1, 3))
    assert (len(passes), len(runs)) == (1, 1)


def in_a_dict(model):
    model.config["temperature"] = 10.0


def in_a_list(model):
    model.config["more"][0].scale = 3.0


def by_another_forward(model):
    model.head.forward = lambda x: 5 * x


def by_another_hook(model):
    model.head._forward_hooks.clear()
    model.head.register_forward_hook(lambda module, inputs, output: 7 * output)


def by_another_function(model):
    model.act = torch.tanh


@pytest.mark.parametrize("change", [in_a_dict, in_a_list, by_another_forward, by_another_hook, by_another_function])
def test_a_setting_of_any_kind_that_does_not_show_in_the_output(change):
    class Configured(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.act = nn.Linear(3, 3, bias=False), torch.sin
            self.config = {"temperature": 1.0, "more": [types.SimpleNamespace(scale=1.0)]}
            self.config["self"] = self.config
            self.head.register_forward_hook(lambda module, inputs, output: 2 * output)

        def forward(self, x):
            return self.act(self.head(x / self.config["temperature"])) * self.config["more"][0].scale ** 2

    model, x = Configured().double().eval(), torch.zeros(1, 3, dtype=torch.float64)
    specxai.linearize(model, x)
    change(model)
    J = torch.func.jacrev(model)(x).reshape(3, 3)
    assert torch.allclose(specxai.linearize(model, x).jacobian.to_dense(), J, atol=1e-14)
