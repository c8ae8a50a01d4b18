"""Programs that write to memory: in-place operators, slices, views of views, against torch run by run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import specxai
from specxai.errors import CaptureError


class Call(nn.Module):
    """A function as a model, behind a layer, so that its input is no leaf."""

    def __init__(self, function, n: int = 6, m: int = 6) -> None:
        super().__init__()
        self.function, self.before = function, nn.Linear(n, m)

    def forward(self, x):
        return self.function(self.before(x))


def check(model: nn.Module, x: torch.Tensor) -> specxai.Local:
    """Value and Jacobian at x and, from the same program, at another input, against torch's."""
    captured = specxai.capture(model, x)
    for point in (x, torch.randn_like(x)):
        kept = point.clone()
        local = captured.linearize(point)
        assert torch.equal(point, kept)
        wanted = model(point.clone()).detach()
        assert torch.allclose(local.output, wanted, rtol=1e-12, atol=1e-12)
        J = torch.autograd.functional.jacobian(lambda z: model(z.clone()), point).reshape(local.jacobian.shape)
        assert (local.jacobian.to_dense() - J).norm() <= 1e-11 * max(1.0, J.norm().item())
        assert local.exactness <= 1e-11
    return local


def slices(z):
    z[:, 0] = z[:, 1] * 2
    z[:, 2:4].mul_(z[:, 4:6].clone())
    return z.relu_() + 1


def views_of_views(z):
    square = z.view(1, 2, 3)
    row = square[:, 1]
    row.mul_(3)
    corner = square.transpose(1, 2)[:, :2]
    corner.add_(1)
    return torch.cat([z, square.flatten(1), row, corner.reshape(1, -1)], 1)


def view_made_before(z):
    flat = z.view(-1)
    z.relu_()
    return flat * 2


def channels_last(z):
    z = z.view(1, 1, 2, 3).expand(1, 2, 2, 3).contiguous(memory_format=torch.channels_last)
    first = z[:, 0]
    z.mul_(2)
    first.sub_(1)
    return z


def filled(z):
    out = z.new_empty(1, 3, 6)
    for i in range(3):
        out[:, i] = z * i
    out[:, 1, 2:4].fill_(0.5)
    out[:, 0].zero_()
    out[:, 2].copy_(z[0])
    return out


def masked(z):
    z.masked_fill_(z > 0.2, -1.0)
    z[z < -0.5] = 0.25
    z[:, [0, 3]] += z[:, [1, 2]]
    return z


def accumulated(z):
    total = torch.zeros_like(z)
    for part in z.split(2, 1):
        total[:, :2] += part
        total += 0.1 * total.roll(1, 1)
    return total


def given_memory(z):
    out = torch.empty(1, 6, dtype=z.dtype)
    with torch.no_grad():
        z2 = z.detach()
        torch.add(z2, 1, out=out)
    return z + out


def own_shape(z):
    y = (2 * z).view(2, 3)
    y.t_()
    y[0] = 1
    y.unsqueeze_(0)
    return y + z.sum()


def by_strides(z):
    y = z * 2
    windows = y.as_strided((1, 4, 3), (6, 1, 1))
    y[:, 2] = 0
    return windows.clone().relu() + y.as_strided((1, 1, 3), (6, 1, 1), 3)


def swapped(z):
    a, b = z.chunk(2, 1)
    a, b = a.clone(), b
    z[:, :3] = b
    z[:, 3:] = a
    return z


def circular(z):
    return F.pad(z.view(1, 1, 2, 3), (1, 1, 1, 1), mode="circular")


@pytest.mark.parametrize("function", [
    slices, views_of_views, view_made_before, channels_last, filled, masked, accumulated, given_memory, own_shape,
    by_strides, swapped, circular], ids=lambda function: function.__name__)
def test_writes(function):
    check(Call(function).double().eval(), torch.randn(1, 6, dtype=torch.float64))


def test_writes_to_the_input_leave_the_callers_alone():
    class First(nn.Module):
        def forward(self, x):
            x[:, 0] = 0
            x += 1
            return x.relu_()

    check(First().eval(), torch.randn(1, 4, dtype=torch.float64))


class Cache(nn.Module):
    """A buffer that forward() writes to."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.adds = adds
        self.register_buffer("cache", torch.ones(1, 6))

    def forward(self, x):
        with torch.no_grad():
            self.cache[:, 1:3] = 2.0
            if self.adds:
                self.cache += 1
        return x * self.cache


def test_a_buffer_that_is_written_to_the_same_each_time():
    model, x = Cache(adds=False).double().eval(), torch.randn(1, 6, dtype=torch.float64)
    check(model, x)
    assert torch.equal(model.cache, torch.tensor([[1.0, 2, 2, 1, 1, 1]], dtype=torch.float64))


def test_a_buffer_that_counts_calls_is_refused():
    with pytest.raises(CaptureError, match="state that changes between calls"):
        specxai.capture(Cache(adds=True).eval(), torch.randn(1, 6))


def random_program(generator: torch.Generator, length: int):
    """A function of (1, 2, 3, 4) made of random views, in-place operators, writes to slices and reads."""
    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    choices = [(draw(12), draw(10**6), draw(10**6), draw(10**6)) for _ in range(length)]

    def run(z):
        known = [z * 1.5]
        for kind, a, b, c in choices:
            t, other = known[a % len(known)], known[b % len(known)]
            axis = c % t.ndim
            if kind == 0:
                known.append(t.transpose(axis, 0))
            elif kind == 1 and t.shape[axis] > 1:
                known.append(t.narrow(axis, 1, t.shape[axis] - 1))
            elif kind == 2:
                known.append(t.select(axis, c % t.shape[axis]) if t.ndim > 1 else t.unsqueeze(0))
            elif kind == 3:
                known.append(t.reshape(-1))
            elif kind == 4:
                t.mul_(0.5 + c % 3)
            elif kind == 5:
                t.add_(other.mean())
            elif kind == 6:
                t.select(axis, 0).copy_(other.sum() * 0.1)
            elif kind == 7:
                F.leaky_relu_(t, 0.3)
            elif kind == 8:
                known.append(t.sin())
            elif kind == 9:
                t.clamp_(-2, 2)
            elif kind == 10:
                t.select(axis, t.shape[axis] - 1).zero_()
            else:
                known.append(t.flip(axis) + other.amax())
        return torch.cat([t.reshape(-1) for t in (z, *known)])[None]

    return run


@pytest.mark.parametrize("seed", range(25))
def test_random_programs_of_views_and_writes(seed):
    function = random_program(torch.Generator().manual_seed(seed), 14)

    class Model(nn.Module):
        def forward(self, x):
            return function(x)

    torch.manual_seed(seed)
    x, model = torch.randn(1, 2, 3, 4, dtype=torch.float64), Model().eval()
    # Autograd refuses most of these, as they overwrite what it has saved: differences do not care.
    captured = specxai.capture(model, x, verify=False)
    for point in (x, torch.randn_like(x)):
        local = captured.linearize(point)
        assert torch.allclose(local.output, model(point), rtol=1e-12, atol=1e-12)
        steps = 1e-6 * torch.eye(24, dtype=x.dtype).reshape(24, *x.shape)
        J = torch.stack([(model(point + step) - model(point - step))[0] / 2e-6 for step in steps], 1)
        assert (local.jacobian.to_dense() - J).norm() <= 1e-6 * max(1.0, J.norm().item())
        assert local.exactness <= 1e-10


@pytest.mark.parametrize("gates", ["frozen", {"softmax": "held"}])
def test_a_written_slice_agrees_with_the_witness_of_held_factors(gates):
    class Writes(nn.Module):
        def forward(self, x):
            z = x.sin()
            z[:, 1] = x[:, 0] * x[:, 2].sigmoid()
            z[:, 2, ::2] = 0
            return 2 * z

    local = specxai.linearize(Writes().eval(), torch.randn(1, 3, 4, dtype=torch.float64), gates=gates)
    assert local.agreement < 1e-14
