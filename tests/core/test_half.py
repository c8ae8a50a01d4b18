"""Models in 16 bits: their own weights and values at x, products summed up in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.rules import narrow

DTYPES = [torch.bfloat16, torch.float16]


class Mlp(nn.Module):
    """Weights large enough to stay in 16 bits, as nn.Linear has them and as GPT-2 does."""

    def __init__(self):
        super().__init__()
        self.up, self.act, self.norm = nn.Linear(260, 300), nn.ReLU(), nn.LayerNorm(300)
        self.down = nn.Parameter(torch.randn(300, 270) / 17)
        self.shift = nn.Parameter(torch.randn(270))
        self.wide = nn.Parameter(torch.randn(270, 250) / 16)
        self.head = nn.Linear(250, 7)

    def forward(self, x):
        h = self.norm(self.act(self.up(x)))
        return self.head(torch.addmm(self.shift, h, self.down).relu() @ self.wide)


def make(dtype):
    torch.manual_seed(0)
    return Mlp().eval().to(dtype), torch.randn(1, 260).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_map_is_in_single_precision(dtype, monkeypatch):
    """J is to float32's rounding that of a copy in float64 with the same gates; 16 bits would be 100 times as far."""
    monkeypatch.setattr(narrow, "PART", 1000)  # many parts, the last of another size
    model, x = make(dtype)
    local = specxai.linearize(model, x, verify=False)
    for backend in ("reference", "torch"):
        J = specxai.linearize(model, x, backend=backend).jacobian
        assert J.dtype is torch.float32
        X, Y = torch.randn(260, 20), torch.randn(7, 20)
        wanted = composed(model, local)
        for got, want in ((J @ X, wanted @ X.double()), (J.rmatmat(Y), wanted.T @ Y.double())):
            assert (got - want).norm() <= 1e-6 * want.norm()
    assert local.bias.dtype is torch.float32


def composed(model, local):
    """J in float64 from the weights and the values at x."""
    wide = {name: tensor.detach().double() for name, tensor in model.named_parameters()}
    z = local.split("up").value.double()[0]
    h = local.split("act").value.double()[0]
    open_, centred = torch.diag((z > 0).double()), torch.eye(300, dtype=torch.float64) - 1 / 300
    root = (h.var(correction=0) + model.norm.eps).sqrt()
    c = (h - h.mean()) / root
    of_norm = wide["norm.weight"][:, None] * (centred - c[:, None] * c / 300) / root
    values = local.captured.program.run(local.input)
    after = next(v for v, step in zip(values, local.captured.program.steps, strict=True) if "addmm" in step.name
                 and v.shape[-1] == 270)
    return (wide["head.weight"] @ wide["wide"].T @ torch.diag((after[0] > 0).double()) @ wide["down"].T @ of_norm
            @ open_ @ wide["up.weight"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_weights_are_not_copied(dtype):
    model, x = make(dtype)
    local = specxai.linearize(model, x)
    held = [node for node in local.graph.nodes.values() if node.fully_connected is not None]
    assert [node.fully_connected.weight.shape for node in held] == [(7, 250)]
    sizes = {step.index for step in local.captured.program.steps if step.kind == "constant"}
    assert all(local.captured.program.constants[step].data_ptr() in {p.data_ptr() for p in model.parameters()}
               for step in sizes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_solvers_and_explanations(dtype):
    model, x = make(dtype)
    e = specxai.explain(model, x, layer="act", target=2, rank=5)
    assert e.converged
    assert e.completeness < 1e-5
    assert e.right_vectors.dtype is torch.float32
    local = e.local
    assert local.agreement <= local.agreement_details.tolerance
    assert local.exactness < 32 * torch.finfo(dtype).eps
    found = specxai.svd(local.split("act").right, rank=5)
    torch.testing.assert_close(found.S, torch.linalg.svdvals(local.split("act").right.to_dense())[:5],
                               rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_gates_and_what_else_a_local_does(dtype):
    model, x = make(dtype)
    local = specxai.linearize(model, x, gates="frozen")
    assert local.agreement <= local.agreement_details.tolerance
    assert local.run_tail("act", local.split("act").value).equal(local.output)
    assert sum(local.bias_contributions(1).values()) == pytest.approx(float(local.bias[0, 1]), abs=0.1)
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval().to(dtype)
    local = specxai.linearize(plain, x[:, :4])
    assert local.first_flip(torch.randn(1, 4)) > 0
    assert local.same_region(x[:, :4])


def test_large_narrow_weights_stay_with_the_reference():
    """A plan would hold them once more, in float32."""
    net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4)).bfloat16().eval()
    x = torch.randn(1, 256).bfloat16()
    assert specxai.linearize(net, x).backend == "reference"
    assert specxai.linearize(net.float(), x.float()).backend == specxai.backends.choose("auto", x.device, torch.float32)
