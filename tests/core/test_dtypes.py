"""Networks that compute in several dtypes: one linear map, in the widest, at the model's own values."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

import specxai
from specxai.backends.used import used

COLUMNS = 33  # more than a plan is made for


class Cast(nn.Module):
    """The module in another dtype, between a conversion there and one back to float32."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner.to(dtype), dtype

    def forward(self, x):
        return self.inner(x.to(self.dtype)).float()


class Region(nn.Module):
    """The module inside of an autocast region."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, x):
        with torch.autocast("cpu", dtype=self.dtype):
            y = self.inner(x)
        return y.float()


class Residual(nn.Module):
    """x + body(x), with torch's promotion where the two differ, and a head in the sum's dtype."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x):
        return self.head(x + self.body(x))


class Double(nn.Module):
    def forward(self, x):
        return x.double()


def region(low):
    body = nn.Sequential(nn.Linear(70, 64), nn.ReLU(), nn.Linear(64, 70))
    return nn.Sequential(nn.Linear(66, 70), nn.ReLU(), Residual(Region(body, low), nn.Linear(70, 40))), (66,), "2.body"


def images(low):
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2))
    return nn.Sequential(Region(body, low), nn.ReLU(), nn.Flatten(), nn.Linear(64, 35)), (3, 9, 9), "0.inner.2"


def there_and_back():
    body = Cast(nn.Sequential(nn.Linear(64, 70), nn.ReLU(), nn.Linear(70, 64)), torch.float64)
    return nn.Sequential(nn.Linear(65, 64), nn.ReLU(), body, nn.ReLU(), nn.Linear(64, 34)), (65,), "2.inner.1"


def half_way():
    return nn.Sequential(nn.Linear(65, 64), nn.ReLU(), Double(), nn.Linear(64, 66).double(), nn.ReLU(),
                         nn.Linear(66, 34).double()), (65,), "1"


def promoted():
    body = nn.Sequential(Double(), nn.Linear(64, 64).double(), nn.ReLU())
    return nn.Sequential(nn.Linear(64, 64), Residual(body, nn.Linear(64, 36).double())), (64,), "1.body"


def normalised():
    return nn.Sequential(nn.Linear(64, 66), Cast(nn.LayerNorm(66), torch.float64), nn.Linear(66, 64), nn.ReLU(),
                         nn.Linear(64, 35), Cast(nn.Softmax(-1), torch.float64)), (64,), "3"


NETS = {
    "bfloat16": (lambda: region(torch.bfloat16), torch.bfloat16, torch.float32),
    "float16": (lambda: region(torch.float16), torch.float16, torch.float32),
    "bfloat16 images": (lambda: images(torch.bfloat16), torch.bfloat16, torch.float32),
    "float16 images": (lambda: images(torch.float16), torch.float16, torch.float32),
    "there and back": (there_and_back, torch.float32, torch.float64),
    "half way": (half_way, torch.float32, torch.float64),
    "promoted": (promoted, torch.float32, torch.float64),
    "normalised": (normalised, torch.float32, torch.float64),
}


@pytest.fixture(params=NETS)
def net(request):
    make, lowest, widest = NETS[request.param]
    torch.manual_seed(3)
    model, shape, layer = make()
    return model.eval(), torch.randn(1, *shape), layer, lowest, widest


def true(model, x):
    return torch.autograd.functional.jacobian(model, x).reshape(-1, x.numel())


def close(got, want, dtype, times=8):
    """Within a few roundings of `dtype`, relative to the whole."""
    assert (got.double() - want.double()).norm() <= times * torch.finfo(dtype).eps * want.double().norm()


def adjoint(operator):
    """⟨A X, Y⟩ = ⟨X, Aᵀ Y⟩ for many columns and for one, to the operator's own rounding."""
    m, n = operator.shape
    generator = torch.Generator().manual_seed(0)
    for columns in (1, COLUMNS):
        X, Y = (torch.randn(size, columns, generator=generator, dtype=operator.dtype) for size in (n, m))
        image, back = operator @ X, operator.T @ Y
        assert image.dtype == back.dtype == operator.dtype
        left, right = ((a.double() * b.double()).sum() for a, b in ((image, Y), (X, back)))
        assert abs(left - right) <= 1e-5 * image.double().norm() * Y.double().norm()


@pytest.mark.parametrize("backend", ["auto", "reference", "native"])
def test_products(net, backend):
    model, x, layer, lowest, widest = net
    if backend == "native" and not specxai.native.available()[0]:
        pytest.skip("the compiled kernels are not there")
    local = specxai.linearize(model, x, backend=backend)
    wanted = true(model, x)
    J, split = local.jacobian, local.split(layer)
    assert local.graph.dtype is widest
    assert local.agreement <= local.agreement_details.tolerance <= 64 * torch.finfo(lowest).eps
    close(J.to_dense(), wanted, lowest)
    close(J.T.to_dense(), wanted.T, lowest)
    whole = split.left @ split.right + split.bypass
    close(whole.to_dense(), J.to_dense(), torch.float32)
    for operator in (J, split.left, split.right, split.bypass, whole):
        assert operator.dtype is torch.float32
        assert operator.matvec(torch.ones(operator.shape[1])).dtype is torch.float32
        adjoint(operator)
    assert local.exactness <= 8 * torch.finfo(lowest).eps


def test_the_compiled_kernels_run_them(net):
    model, x, *_ = net
    if not specxai.native.available()[0]:
        pytest.skip("the compiled kernels are not there")
    J = specxai.linearize(model, x).jacobian
    with used() as names:
        J @ torch.ones(J.shape[1], COLUMNS)
    assert names == {"native"}


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_explain(net, backend):
    model, x, layer, lowest, _ = net
    e = specxai.explain(model, x, layer=layer, rank=3, target=1, backend=backend)
    wanted = true(model, x)[1].reshape(e.gradient.shape)
    close(e.gradient, wanted, lowest)
    assert e.converged
    assert e.completeness <= 1e-5
    assert e.right_vectors.dtype is torch.float32


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_inside_an_outer_autocast(backend):
    torch.manual_seed(0)
    low = torch.bfloat16
    model, x = nn.Sequential(nn.Linear(60, 64), nn.ReLU(), nn.Linear(64, 40)).eval(), torch.randn(1, 60)
    with torch.autocast("cpu", dtype=low):
        wanted = true(model, x)
        local = specxai.linearize(model, x, backend=backend)
        inside = local.jacobian.to_dense()
        split = local.split("1")
        left, right = split.left.to_dense(), split.right.to_dense()
        adjoint(local.jacobian)
        e = specxai.explain(local, layer="1", rank=3)
    assert local.output.dtype is low
    close(inside, wanted, low)
    close(left @ right, inside, torch.float32)
    assert e.completeness <= 1e-5
    assert torch.equal(inside, local.jacobian.to_dense())  # the map is the same one outside


def test_products_of_a_plain_map_ignore_an_outer_autocast():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 40)).eval()
    x = torch.randn(1, 60)
    local = specxai.linearize(model, x)
    outside = local.jacobian.to_dense(), local.bias_contributions(0), local.run_tail("1", torch.ones(64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(local.jacobian.to_dense(), outside[0])
        assert local.bias_contributions(0) == outside[1]
        assert torch.equal(local.run_tail("1", torch.ones(64)), outside[2])


def test_gates_and_flips_across_dtypes():
    torch.manual_seed(1)
    model, _, _ = there_and_back()
    model, x, d = model.eval(), torch.randn(1, 65), torch.randn(1, 65)
    local = specxai.linearize(model, x)
    flip = local.first_flip(d)
    assert local.same_region(x + 0.99 * float(flip) * d)
    assert not local.same_region(x + 1.01 * float(flip) * d)


@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.inference_mode])
def test_frozen_gates(context):
    low, x = torch.bfloat16, torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    body = Region(nn.Sequential(nn.Linear(64, 66), nn.GELU(), nn.Linear(66, 64)), low)
    model = nn.Sequential(body, nn.SiLU(), nn.Linear(64, 35)).eval()
    with context():
        local = specxai.linearize(model, x, gates="frozen")
    assert local.agreement <= local.agreement_details.tolerance
    close((local.jacobian @ x.reshape(-1, 1)).flatten() + local.bias.flatten(), local.output.flatten(), low)
    assert local.exactness <= 8 * torch.finfo(low).eps
