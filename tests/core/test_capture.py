"""Capture: layer names however modules are called, and what is refused."""

from __future__ import annotations

import gc
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import specxai
from nets import build
from specxai.errors import CaptureError


class Wrapped(nn.Module):
    """A model of one function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.first = function, nn.Linear(3, 3)

    def forward(self, x):
        return self.function(self.first(x))


def linearized(function, n: int = 3) -> specxai.Local:
    return specxai.linearize(Wrapped(function).eval(), torch.randn(1, n))


def test_names_follow_execution_and_number_repeated_calls():
    model, x = build("skip")
    assert specxai.capture(model, x).layers == [
        "stem", "relu#1", "body.0", "body.1", "body", "relu#2", "pool", "relu#3", "head"]


def test_layer_values_are_the_modules_outputs():
    model, x = build("skip")
    seen: dict[str, list[torch.Tensor]] = {}
    for path, module in model.named_modules():
        # A copy: the in-place ReLU overwrites what the layer before it returned.
        module.register_forward_hook(lambda m, i, out, path=path: seen.setdefault(path, []).append(out.clone()))
    model(x)
    local = specxai.linearize(model, x)
    for layer in local.layers:
        path, _, call = layer.partition("#")
        assert torch.equal(local.split(layer).value, seen[path][int(call or 1) - 1].detach()), layer


def test_a_module_registered_twice_is_called_once_each():
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": shared})

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts["b"](F.relu(self.parts["a"](x)))

    local = specxai.linearize(Twice().eval(), torch.randn(1, 3))
    assert local.layers == ["parts.a#1", "parts.a#2"]
    assert local.exactness <= 1e-6


def test_weights_are_not_copied():
    model, x = build("perceptron")
    captured = specxai.capture(model, x)
    before = captured.linearize(x).output
    with torch.no_grad():
        model[5].bias.add_(1)
    assert torch.allclose(captured.linearize(x).output, before + 1)


def test_capture_leaves_no_trace():
    model, x = build("skip")
    kept, state = x.clone(), torch.get_rng_state()
    specxai.linearize(model, x)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not module._forward_hooks for module in model.modules())
    assert gc.isenabled()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_grad_mode(mode):
    model, x = build("skip")
    wanted = specxai.linearize(model, x)
    with mode():
        e = specxai.explain(model, torch.zeros_like(x) + x, layer="body", target=1, rank=None)
        again = specxai.explain(model, 2 * x, layer="body", target=1, rank=3)
    assert e.output == wanted.output[0, 1].item()
    assert max(e.completeness, e.exactness, again.completeness, again.exactness) <= 1e-13


def test_an_input_with_a_gradient_keeps_it():
    model, x = build("perceptron")
    x.requires_grad_()
    local = specxai.linearize(model, x)
    assert x.requires_grad
    assert x.grad is None
    assert not local.output.requires_grad
    assert not (local.jacobian @ torch.ones(6, dtype=x.dtype)).requires_grad


def test_an_in_place_first_layer_does_not_write_to_x():
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)).eval(), -torch.ones(1, 4)
    specxai.linearize(model, x)
    assert torch.equal(x, -torch.ones(1, 4))


def test_wrappers_are_seen_through():
    model, x = build("perceptron", torch.float32)
    assert specxai.capture(torch.compile(model), x).layers == specxai.capture(model, x).layers
    assert specxai.capture(nn.DataParallel(model), x).layers == specxai.capture(model, x).layers


def test_gradients_stop_where_the_model_stops_them():
    def stopped(z):
        with torch.no_grad():
            scale = z.norm()
        return z / scale.detach() + scale

    local = linearized(stopped)
    wanted = torch.func.jacrev(local_function := Wrapped(stopped).eval())(torch.ones(1, 3))
    got = specxai.linearize(local_function, torch.ones(1, 3))
    assert torch.allclose(got.jacobian.to_dense(), wanted.reshape(3, 3), atol=1e-6)
    assert local.exactness <= 1e-6
    assert "gradient stopped" in local.report()


def test_outputs_in_containers():
    assert linearized(lambda z: {"logits": 2 * z}).output.shape == (1, 3)
    assert linearized(lambda z: (z, z.argmax(1))).output.shape == (1, 3)


class Lying(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 3


@pytest.mark.parametrize("function, message", [
    (lambda z: z.argmax(1), "returns 1 tensor, .* floating-point tensor that depends on its input"),
    (lambda z: "text", "returns str, which holds no tensor"),
    (lambda z: z * torch.rand(3), r"randomness in forward\(\): aten.rand.default at .*test_capture.py:\d+"),
    (lambda z: z * random.random(), "differs from one run to the next .* randomness in forward"),
    (lambda z: F.dropout(z), r"randomness in forward\(\): aten.native_dropout"),
    (Lying.apply, "product with Jᵀ differs .* custom autograd.Function"),
    (lambda z: torch.tensor(z.detach().numpy()), "no gradient reaches the output of Wrapped"),
    (lambda z: torch.tensor(z.tolist()), r"depends on its input; values left torch, .* at .*test_capture.py:\d+"),
    (lambda z: z + z.detach().clone().resize_(1, 3), r"test_capture.py:\d+ changes a tensor in place by aten.resize_"),
    (lambda z: (z > 0).float(), "depends on its input"),
], ids=["integer", "no tensor", "random", "random in Python", "dropout", "lying derivative", "numpy", "list", "resized",
        "steps"])
def test_what_cannot_be_captured(function, message, capfd):
    with pytest.raises(CaptureError, match=message) as raised:
        linearized(function)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


class Overwritten(nn.Module):
    """Writes to a value that autograd needs."""

    def forward(self, x):
        y = torch.sigmoid(x)
        return y.mul_(2) + torch.tanh(y).mul_(3)


def test_central_differences_stand_in_for_a_model_that_autograd_cannot_differentiate():
    x = torch.randn(1, 3, dtype=torch.float64)
    local = specxai.linearize(Overwritten().eval(), x)
    s = torch.sigmoid(x)
    slope = s * (1 - s) * (2 + 6 * (1 - torch.tanh(2 * s) ** 2))
    torch.testing.assert_close(local.jacobian.to_dense(), torch.diag(slope[0]))
    assert local.agreement_details.witness == "central difference"
    assert local.agreement < 1e-5


def test_verification_may_be_skipped():
    model = Wrapped(Lying.apply).eval()
    assert specxai.capture(model, torch.randn(1, 3), verify=False).layers == ["first"]


def test_an_input_the_model_cannot_take():
    with pytest.raises(CaptureError, match=r"Wrapped itself fails on an input of shape \(1, 7\): mat1 and mat2"):
        linearized(F.relu, n=7)


@pytest.mark.parametrize("x, message", [
    (torch.zeros(1, 5), r"x has shape \(1, 5\), but the model was captured for \(1, 6\)"),
    (torch.zeros(1, 6, dtype=torch.float32), "x has dtype torch.float32, but"),
    (torch.full((1, 6), torch.nan, dtype=torch.float64), "the input holds NaN or infinity"),
])
def test_a_further_input_must_be_like_the_first(x, message):
    captured = specxai.capture(*build("perceptron"))
    with pytest.raises(ValueError, match=message):
        captured.linearize(x)
    with pytest.raises(TypeError, match="got list"):
        captured.linearize([0.0])


def test_other_floating_dtypes_and_infinities_inside():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("shift", torch.ones(4, dtype=torch.float64))
            self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
            self.register_buffer("count", torch.tensor(3))

        def forward(self, x):
            weights = (x.mT @ x + self.mask).softmax(-1)
            return self.linear(x @ weights + self.shift.float()) / self.count

    model, x = Mixed().eval(), torch.randn(1, 4)
    local = specxai.linearize(model, x)
    J = torch.autograd.functional.jacobian(model, x).reshape(4, 4)
    assert torch.allclose(local.jacobian.to_dense(), J, atol=1e-5)
    model.mask[0, 0] = torch.nan
    with pytest.raises(ValueError, match="buffer mask holds NaN"):
        specxai.linearize(model, x)


def test_an_output_that_is_not_finite_is_named():
    model = Wrapped(lambda z: z.masked_fill(torch.tensor([True, False, False]), torch.nan)).eval()
    with pytest.raises(ValueError, match=r"output at this input holds NaN .* aten.masked_fill.Scalar in 'masked_fill' "
                                         r"\(.*test_capture.py:\d+\)"):
        specxai.linearize(model, torch.randn(1, 3))
