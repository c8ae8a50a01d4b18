"""What `agreement` says where float32 has few digits left, and whose word counts where torch's derivative is not J."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import nn

import specxai
from random_nets import random_net
from specxai.capture import recording as recording_module
from specxai.errors import CaptureError, PrecisionWarning


class Confident(nn.Module):
    """A softmax that is sure: its derivative is what is left of terms a thousand times as large."""

    def __init__(self, times: float) -> None:
        super().__init__()
        self.body, self.times = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 5)), times

    def forward(self, x):
        return (self.body(x) * self.times).softmax(1)


@pytest.mark.parametrize("times", [30, 90, 110, 200])
@pytest.mark.parametrize("fault", [None, 1.3, -1.0])
def test_a_fault_behind_a_confident_softmax(times, fault, monkeypatch):
    from specxai.affine import nodes as nodes_module

    made = nodes_module.linear_node

    def linear_node(call):
        node = made(call)
        if fault is None or "gelu" not in str(call.step.target):
            return node
        return _scaled(node, fault)

    monkeypatch.setattr(nodes_module, "linear_node", linear_node)
    for seed in range(3):
        torch.manual_seed(seed)
        model, x = Confident(times).eval(), torch.randn(1, 8)
        truth = torch.func.jacrev(Confident.forward, argnums=1)(_double(model), x.double()).reshape(5, 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PrecisionWarning)
            if fault is None:
                local = _certified(model, x, may_be_refused=times == 200)
                if local is None:
                    continue
                theirs = torch.autograd.functional.jacobian(model, x).reshape(5, 8)
                J = local.jacobian.T.matmat(torch.eye(5)).T
                torch.testing.assert_close(J, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
            elif truth.norm() > 1e-25:
                with pytest.raises(CaptureError):
                    specxai.linearize(model, x)


def _certified(model, x, may_be_refused):
    """The Local, or None where float64 has no digits left either, and the error says so."""
    if not may_be_refused:
        return specxai.linearize(model, x)
    try:
        return specxai.linearize(model, x)
    except CaptureError as error:
        if "cancel to the last digit" not in str(error):
            raise
        return None


def _scaled(node, factor):
    from dataclasses import replace

    return replace(node, terms=tuple(
        replace(t, apply=lambda b, t=t: factor * t.apply(b), adjoint=lambda b, t=t: factor * t.adjoint(b))
        for t in node.terms))


def _double(model):
    import copy

    return copy.deepcopy(model).double()


def test_slopes_that_underflow_are_no_fault():
    torch.manual_seed(0)
    deep = nn.Sequential(*(module for _ in range(200) for module in (nn.Linear(8, 8), nn.Tanh()))).eval()
    with pytest.warns(PrecisionWarning):
        local = specxai.linearize(deep, torch.randn(1, 8))
    assert local.agreement_details.witness == "float64"
    faint = nn.Sequential(nn.Linear(8, 8), _Softplus()).eval()
    for seed in range(6):
        torch.manual_seed(seed)
        assert specxai.linearize(faint, torch.randn(1, 8)).agreement < 1e-3


class _Softplus(nn.Module):
    def forward(self, x):
        return nn.functional.softplus(x - 90)


@pytest.mark.parametrize("hook", [lambda g: -g, lambda g: 3 * g])
def test_a_hook_that_changes_gradients_is_the_models_word(hook):
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            y = self.linear(x)
            if y.requires_grad:
                y.register_hook(hook)
            return y.tanh()

    with pytest.raises(CaptureError, match="hook"):
        specxai.linearize(Reversed().double().eval(), torch.randn(1, 4, dtype=torch.float64))


class AsksForStrides(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(48, 3)

    def forward(self, x):
        if x.is_contiguous():
            return self.head(x.flatten(1))
        return self.head(x.permute(0, 2, 3, 1).view(1, -1)) * 2


def test_strides_of_the_input_are_the_models_to_ask_for():
    model, x = AsksForStrides().double().eval(), torch.randn(1, 3, 4, 4, dtype=torch.float64)
    last = x.to(memory_format=torch.channels_last)
    for given in (x, last, x, last):
        local = specxai.linearize(model, given)
        want = torch.autograd.functional.jacobian(model, given).reshape(3, 48)
        torch.testing.assert_close(local.jacobian.to_dense(), want)
        torch.testing.assert_close(local.output, model(given))


def test_captures_of_many_shapes_are_not_all_kept():
    model = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(8, 2)).eval()
    for size in range(5, 25):
        specxai.linearize(model, torch.randn(1, 2, size))
    assert len(recording_module._RECALLED[model]) <= recording_module.KEPT_RECORDINGS


def test_threads_leave_attention_settings_alone():
    class Distances(nn.Module):
        def forward(self, x):
            return torch.cdist(x, x).flatten(1)

    def flags():
        cuda = torch.backends.cuda
        return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()

    before = flags()
    local = specxai.linearize(Distances().eval(), torch.randn(1, 6, 3), backend="reference")
    V = torch.randn(18, 2)
    threads = [threading.Thread(target=lambda: [local.jacobian @ V for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    seen = {flags() for _ in range(200)}
    for thread in threads:
        thread.join()
    assert seen | {flags()} == {before}


@pytest.mark.parametrize("scale", [1e-170, 1e-100, 1.0, 1e100, 1e150])
@pytest.mark.parametrize("sides", ["apply", "adjoint"])
def test_a_fault_is_seen_at_any_scale_in_float64(scale, sides, monkeypatch):
    from dataclasses import replace

    from specxai.affine import nodes as nodes_module

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x))) * scale

    model, x = Scaled().double().eval(), torch.randn(1, 6, dtype=torch.float64)
    assert specxai.linearize(model, x).agreement < 1e-12
    made = nodes_module.linear_node

    def linear_node(call):
        node = made(call)
        if "tanh" not in str(call.step.target):
            return node
        return replace(node, terms=tuple(replace(t, **{sides: _wrong(getattr(t, sides))}) for t in node.terms))

    monkeypatch.setattr(nodes_module, "linear_node", linear_node)
    with pytest.raises(CaptureError):
        specxai.linearize(model, x)


def _wrong(product):
    return lambda block: -1.3 * product(block)


class Outside(torch.autograd.Function):
    """Squares by NumPy, with the right derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 2)

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


@pytest.mark.parametrize("verify", [True, False])
def test_a_function_computed_outside_of_torch_is_named(verify):
    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return Outside.apply(self.linear(x)) + x

    with pytest.raises(CaptureError, match=r"Function Outside computed its result outside of torch.*\.py:\d+"):
        specxai.linearize(Squares().eval(), torch.randn(1, 4), verify=verify)


@pytest.mark.parametrize("seed, scale, gates, dtype", [
    (26, 0.0, "frozen", torch.float64), (40, 0.0, "frozen", torch.float32), (5, 1e-3, "frozen", torch.float64),
    (62, 1e-3, "frozen", torch.float32), (16, 100.0, "tangent", torch.float32)])
@pytest.mark.filterwarnings("ignore::specxai.errors.PrecisionWarning")
def test_ties_and_numbers_below_the_smallest_are_no_disagreement(seed, scale, gates, dtype):
    """A constant image ties every pool, and behind a saturated softmax cotangents have no digits."""
    net, x = random_net(seed, dtype)
    assert specxai.linearize(net, x * scale, gates=gates).agreement < 1e-3
