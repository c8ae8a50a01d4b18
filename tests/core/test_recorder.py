"""Recording one eager run: what users' code may do in it, where gradients stop, and that nothing else is touched."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import specxai
from nets import NETS, build
from specxai.capture import frames
from specxai.errors import CaptureError


class Model(nn.Module):
    """A function of the input and of two layers."""

    def __init__(self, function, n: int = 6, m: int = 6) -> None:
        super().__init__()
        self.function, self.body, self.head = function, nn.Linear(n, m), nn.Linear(m, 3)

    def forward(self, x):
        return self.function(self, x)


def model_of(function, **sizes) -> nn.Module:
    torch.manual_seed(0)
    return Model(function, **sizes).double().eval()


def differences(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The Jacobian by central differences: of what the model computes, not of what autograd says of it."""
    steps = 1e-6 * torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    with torch.no_grad():
        return torch.stack([(model(x + step) - model(x - step)).flatten() / 2e-6 for step in steps], 1)


def check(model: nn.Module, x: torch.Tensor, tolerance: float = 1e-12) -> specxai.Local:
    """Output and Jacobian at x against torch's."""
    local = specxai.linearize(model, x)
    J = torch.autograd.functional.jacobian(model, x).reshape(local.jacobian.shape)
    assert torch.allclose(local.output, model(x).detach(), rtol=tolerance, atol=tolerance)
    assert (local.jacobian.to_dense() - J).norm() <= tolerance * max(1.0, J.norm().item())
    assert local.exactness <= 1e-12
    return local


X = torch.linspace(-1, 1, 6, dtype=torch.float64)[None]


# Where gradients stop, and where they do not

class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        with torch.no_grad():
            z = z.detach()
        return torch.relu(2 * z)

    @staticmethod
    def backward(ctx, grad):
        raise AssertionError("not differentiated here")


class Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        ctx.mark_non_differentiable(size := z.norm())
        return 2 * z.clamp(min=0), size

    @staticmethod
    def backward(ctx, grad, _):
        return 2 * grad * (ctx.saved_tensors[0] > 0)


def set_off(s, x):
    torch.set_grad_enabled(False)
    scale = s.body(x).norm()
    torch.set_grad_enabled(True)
    return s.head(x / scale)


def reattached(s, x):
    y = s.body(x).detach().requires_grad_()
    return s.head(x) * y.sum()


def its_own_gradient(s, x):
    if not x.requires_grad:
        x = x.clone().requires_grad_()
    with torch.enable_grad():
        energy = s.body(x).sigmoid().sum()
        force, = torch.autograd.grad(energy, x, create_graph=True)
    return s.head(force)


STOPS = {
    "no_grad": lambda s, x: s.head(x * _inside(torch.no_grad(), lambda: s.body(x).norm())),
    "inference mode": lambda s, x: s.head(x) * _inside(torch.inference_mode(), lambda: s.body(x).norm()).clone(),
    "set_grad_enabled": set_off,
    "detach": lambda s, x: s.head(x) * s.body(x).detach().relu().sum(),
    "data": lambda s, x: s.head(x) * s.body(x).data.abs().sum(),
    "grad back on": lambda s, x: s.head(x) * _inside(torch.no_grad(), lambda: _inside(
        torch.enable_grad(), lambda: s.body(x).sum())),
    "a new leaf": reattached,
    "a function": lambda s, x: s.head(Rectified.apply(s.body(x))[0]),
    "a function's constant": lambda s, x: s.head(Rectified.apply(x)[0]) * Rectified.apply(s.body(x))[1],
    "a function without grad": lambda s, x: s.head(x + _inside(torch.no_grad(), lambda: Rectified.apply(s.body(x))[0])),
    "checkpoint": lambda s, x: s.head(checkpoint(s.body, x, use_reentrant=False)),
    "its own gradient": its_own_gradient,
    "vmap": lambda s, x: s.head(torch.vmap(lambda z: z.sigmoid() * z[0])(s.body(x))),
    "straight through": lambda s, x: s.head((h := s.body(x)) + (h.round() - h).detach()),
}


def _inside(context, function):
    with context:
        return function()


@pytest.mark.parametrize("name", STOPS)
def test_gradients_stop_where_autograd_stops_them(name):
    check(model_of(STOPS[name]), X)


@pytest.mark.parametrize("function", [
    lambda s, x: s.head(Doubled.apply(s.body(x))),
    lambda s, x: s.head(checkpoint(lambda z: s.body(z).relu(), x, use_reentrant=True))], ids=["function", "checkpoint"])
def test_what_autograd_cannot_see_through_gives_no_zeros(function):
    model = model_of(function)
    J = specxai.capture(model, X, verify=False).linearize(X).jacobian.to_dense()
    assert torch.allclose(J, differences(model, X), atol=1e-8)


@pytest.mark.parametrize("region", [torch.no_grad, torch.inference_mode])
def test_a_whole_forward_without_gradients_is_refused(region):
    model = model_of(lambda s, x: _inside(region(), lambda: s.head(s.body(x))))
    for verify in (True, False):
        with pytest.raises(CaptureError, match=r"no gradient reaches the output of Model: forward\(\) runs"):
            specxai.capture(model, X, verify=verify)


def test_cond_is_followed_and_leaves_torchs_own_working():
    model = model_of(lambda s, x: s.head(torch.cond(x.sum() > 0.5, torch.cos, torch.sin, (s.body(x),))))
    for point in (X, X + 1):
        check(model, point)
    captured = specxai.capture(model, X)
    assert len(captured.specialised) == 1
    J = captured.linearize(X + 1).jacobian.to_dense()
    assert torch.allclose(J, differences(model, X + 1), atol=1e-8)


def test_an_autocast_region():
    def half(s, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = s.body(x).relu()
        return s.head(y.float())

    model, x = Model(half).eval(), X.float()
    local = specxai.capture(model, x, verify=False).linearize(x)
    theirs = torch.autograd.functional.jacobian(model, x).reshape(3, 6)
    assert (local.jacobian.to_dense() - theirs).norm() <= 1e-2 * theirs.norm()  # which rounds on its way back too
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gate = (model.body(x) > 0).float()
    J = model.head.weight * gate @ model.body.weight.bfloat16().float()
    assert (local.jacobian.to_dense() - J).norm() <= 1e-6 * J.norm()


def test_compiled_modules_inside_are_recorded_and_stay_compiled():
    runs = []

    def backend(graph, inputs):
        return lambda *args: runs.append(1) or graph(*args)

    inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    model = nn.Sequential(nn.Linear(6, 6), torch.compile(inner, backend=backend), nn.Linear(6, 3)).double().eval()
    local = check(model, X)
    assert local.layers == ["0", "1.0", "1.1", "1", "2"]
    for module in (model[1], inner):
        assert local.split(module).layer == "1"
    runs.clear()
    model(X)
    model(X)
    assert len(runs) == 2


# What users' code may do

def test_users_hooks_see_plain_tensors():
    model, x, seen = *build("perceptron"), []
    model[1].register_forward_hook(lambda module, inputs, out: seen.append((type(out), float(out.mean()))))
    model[4].register_forward_pre_hook(lambda module, inputs: inputs[0] * np.float64(inputs[0].detach().numpy().size))
    local = specxai.linearize(model, x)
    assert {kind for kind, _ in seen} == {torch.Tensor}
    assert torch.allclose(local.output, model(x))
    J = torch.autograd.functional.jacobian(model, x).reshape(4, 6)
    assert torch.allclose(local.jacobian.to_dense(), J, atol=1e-12)


def branching(s, x):
    h = s.body(x)
    return s.head(h.relu() if h.sum() > 0 else 3 * h)


def looked_up(s, x):
    return s.head(s.body(x) * float(x.detach().numpy().max() > 1.5))


def chosen(s, x):
    return s.head(torch.cat([s.body(x)[x > 0], x.new_zeros(int((x <= 0).sum()))])[None])


@pytest.mark.parametrize("function", [branching, looked_up, chosen])
def test_decisions_by_value_hold_where_they_are_the_same(function):
    model = model_of(function)
    captured = specxai.capture(model, X)
    assert captured.specialised
    assert all(f"{__file__}:{function.__code__.co_firstlineno + 1}" <= line for line in captured.specialised)
    assert captured.specialised[0] in captured.linearize(X).report()
    for point in (X, X + 2, -X - 3, -X):
        for local in (captured.linearize(point), specxai.linearize(model, point)):
            assert torch.allclose(local.output, model(point), atol=1e-12)
            assert torch.allclose(local.jacobian.to_dense(), differences(model, point), atol=1e-7)


def test_a_second_input_with_other_strides():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 2)).double().eval()
    first = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    other = torch.randn(4, 4, 3, dtype=torch.float64).permute(2, 0, 1)[None]
    captured = specxai.capture(model, first)
    for local in (captured.linearize(other), specxai.linearize(model, first), specxai.linearize(model, other)):
        assert torch.allclose(local.output, model(local.input), atol=1e-12)
    strided = model_of(lambda s, x: s.head(s.body(x.view(1, 4, 6)[:, :, :4].flatten(1)[:, 2:8])))
    check(strided, torch.randn(1, 24, dtype=torch.float64))


def test_a_counter_in_forward_does_not_trace_again(monkeypatch):
    def counting(s, x):
        s.calls = getattr(s, "calls", 0) + 1
        s.history = [*getattr(s, "history", []), s.calls]
        return s.head(s.body(x))

    model, traces = model_of(counting), []
    trace = specxai.capture.recording.trace
    monkeypatch.setattr(specxai.capture.recording, "trace", lambda *a: traces.append(1) or trace(*a))
    for _ in range(4):
        specxai.linearize(model, X)
    assert len(traces) == 1


# The moment's modes, and what is left as it was

@pytest.mark.parametrize("name", NETS)
def test_capture_inside_of_inference_mode(name):
    model, x = build(name)
    wanted = specxai.linearize(model, x).jacobian.to_dense()
    with torch.inference_mode():
        local = specxai.linearize(model, x + 0)
        again = specxai.capture(model, x.clone()).linearize(x)
    for found in (local, again):
        assert torch.equal(found.jacobian.to_dense(), wanted)


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model, x = build("skip")
    local = specxai.linearize(model, x)
    assert local.layers[:3] == ["stem", "relu#1", "body.0"]
    assert local.split(model.pool).layer == "pool"
    with torch.inference_mode():
        assert torch.allclose(local.output, model(x))
    plain, _ = build("skip")
    plain.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    wanted = torch.func.jacrev(plain)(x.clone()).reshape(local.jacobian.shape)
    assert torch.allclose(local.jacobian.to_dense(), wanted, atol=1e-12)


def test_torchs_defaults_of_the_moment_do_not_matter():
    code = """
import torch, specxai
from torch import nn
class N(nn.Module):
    def __init__(s): super().__init__(); s.h = nn.Linear(6, 3)
    def forward(s, x): return s.h(x + torch.zeros(6) + torch.arange(6))
model, x = N().eval(), torch.ones(1, 6)
captured = specxai.capture(model, x)
torch.set_default_dtype(torch.float64); torch.set_default_device("meta")
local = captured.linearize(x, verify=False)  # the model itself cannot run under these
print(local.output.dtype, local.output.device, torch.allclose(local.jacobian.to_dense(), model.h.weight))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["torch.float32", "cpu", "True"]


def test_threads_capture_the_same_and_other_models():
    nets = {name: build(name) for name in NETS}
    wanted = {name: specxai.capture(*net).linearize(net[1]).jacobian.to_dense() for name, net in nets.items()}
    streams = sys.stdout, sys.stderr, logging.getLogger("torch").level, list(warnings.filters)
    start = threading.Barrier(8)

    def work(i: int) -> list[bool]:
        start.wait()
        right = []
        for j in range(4):
            name = list(NETS)[(i + j) % len(NETS)]
            model, x = nets[name]
            local = specxai.capture(model, x).linearize(x) if j % 2 else specxai.linearize(model, x)
            right.append(torch.equal(local.jacobian.to_dense(), wanted[name]))
            right.append(torch.allclose(model(x), local.output))
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all(map(all, pool.map(work, range(8))))
    assert streams == (sys.stdout, sys.stderr, logging.getLogger("torch").level, list(warnings.filters))
    assert not any(module._forward_hooks or module._forward_pre_hooks for model, _ in nets.values()
                   for module in model.modules())


def test_another_thread_may_run_the_model_while_it_is_captured():
    model, x = build("skip")
    captured, errors, done = specxai.capture(model, x), [], threading.Event()

    def run():
        while not done.is_set():
            try:
                model(x)
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    found = [specxai.capture(model, x) for _ in range(10)]
    done.set()
    thread.join()
    assert errors == []
    assert all(other.layers == captured.layers for other in found)
    assert all(len(other.program.steps) == len(captured.program.steps) for other in found)


def test_a_failing_model_is_left_as_it_was():
    model = model_of(lambda s, x: s.head(s.body(x)[:, :2]))
    with pytest.raises(CaptureError, match=r"Model itself fails on an input of shape \(1, 6\): mat1 and mat2"):
        specxai.linearize(model, X)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_a_deep_model_takes_time_in_proportion():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return x + 0.1 * self.linear(x).relu()

    counts = {}
    for depth in (30, 120):
        model, calls = nn.Sequential(*(Block() for _ in range(depth))).eval(), 0

        def count(frame, event, argument):
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            specxai.capture(model, torch.randn(1, 4), verify=False)
        finally:
            sys.setprofile(None)
        counts[depth] = calls
    assert counts[120] <= 4.5 * counts[30]


@pytest.mark.parametrize("name", [name for name in STOPS if "function" in name or name == "checkpoint"])
def test_a_forward_is_known_where_apply_is_no_python_function(name, monkeypatch):
    """As from torch 2.14 on."""
    monkeypatch.setattr(frames, "_FUNCTION_APPLY", None)
    check(model_of(STOPS[name]), X)
    model = model_of(lambda s, x: s.head(Doubled.apply(s.body(x))))
    J = specxai.capture(model, X, verify=False).linearize(X).jacobian.to_dense()
    assert torch.allclose(J, differences(model, X), atol=1e-8)
