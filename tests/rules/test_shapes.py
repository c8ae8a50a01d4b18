"""Rules at random shapes and in both precisions: against torch's derivative, and with factors held by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import specxai
from tolerances import RELATIVE

FEW = settings(max_examples=25, deadline=None)
DTYPES = st.sampled_from([torch.float32, torch.float64])


class Function(nn.Module):
    """A function of x in parts, each behind its own linear map of the last axis."""

    def __init__(self, function, parts: int, width: int) -> None:
        super().__init__()
        self.function = function
        self.maps = nn.ModuleList(nn.Linear(width, width) for _ in range(parts))

    def forward(self, x):
        return self.function(*(each(x) for each in self.maps))


def compare(function, by_hand, shape: tuple[int, ...], dtype: torch.dtype, parts: int = 1) -> None:
    """Both policies; `by_hand` is the function with its factors detached."""
    torch.manual_seed(1)
    model = Function(function, parts, shape[-1]).eval().to(dtype)
    x, bound = torch.randn(shape, dtype=dtype), 50 * RELATIVE[dtype]
    for gates, wanted in (("tangent", function), ("frozen", by_hand)):
        local = specxai.linearize(model, x, gates=gates, backend="reference")
        exact = Function(wanted, parts, shape[-1]).double().eval()
        exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
        J = torch.autograd.functional.jacobian(exact, x.double()).reshape(-1, x.numel())
        n, m = J.shape[1], J.shape[0]
        scale = max(J.norm().item(), 1e-3)
        if n and m:
            assert (local.jacobian.matmat(torch.eye(n, dtype=dtype)) - J).norm() <= bound * scale
            assert (local.jacobian.rmatmat(torch.eye(m, dtype=dtype)).T - J).norm() <= bound * scale
        assert local.generic_nodes == []
        assert local.exactness <= bound


@FEW
@given(tokens=st.integers(1, 4), heads=st.integers(1, 3), size=st.integers(1, 3), dtype=DTYPES,
       kind=st.sampled_from(["full", "causal", "boolean", "numbers", "no key"]), grouped=st.booleans(),
       live=st.sampled_from(["qkv", "qk", "v", "kv", "q"]))
def test_attention(tokens, heads, size, dtype, kind, grouped, live):
    width = heads * size * (2 if grouped else 1)
    constant = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(2))
    boolean = torch.rand(tokens, tokens, generator=torch.Generator().manual_seed(3)) > 0.4
    boolean.fill_diagonal_(True)
    if kind == "no key":
        boolean[0] = False  # a row of nothing: all masked, whose output is 0

    def parts(tensors):
        found = dict(zip(live, tensors, strict=True))
        q, k, v = (found.get(name, constant.to(tensors[0])) for name in "qkv")
        count = 2 * heads if grouped else heads
        q = q.unflatten(-1, (count, -1)).transpose(1, 2)
        k, v = (each[..., :heads * size].unflatten(-1, (heads, -1)).transpose(1, 2) for each in (k, v))
        return q, k, v

    def mask_of(q):
        if kind in ("boolean", "no key"):
            return torch.zeros(tokens, tokens).masked_fill(~boolean, -torch.inf).to(q)
        if kind == "causal":
            return torch.full((tokens, tokens), -torch.inf).triu(1).to(q)
        return torch.linspace(-1, 1, tokens * tokens).reshape(tokens, tokens).to(q) if kind == "numbers" else None

    def fused(*tensors):
        q, k, v = parts(tensors)
        mask = boolean if kind in ("boolean", "no key") else mask_of(q) if kind == "numbers" else None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=kind == "causal", enable_gqa=grouped)

    def by_hand(*tensors):
        q, k, v = parts(tensors)
        if grouped:
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        mask, scores = mask_of(q), q @ k.mT
        if live == "qk":  # two values, of which each takes half
            scores = (q @ k.mT.detach() + q.detach() @ k.mT) / 2
        scores = scores / q.shape[-1] ** 0.5
        pattern = torch.ops.aten._safe_softmax(scores if mask is None else scores + mask, -1)
        # Without a live value there is no product for the pattern to be a factor of: it keeps its derivative.
        return (pattern.detach() if "v" in live else pattern) @ v

    compare(fused, by_hand, (1, tokens, width), dtype, len(live))


def _scaled(z, dims, eps, centred=True):
    moved = z - z.mean(dims, keepdim=True) if centred else z
    return moved / (moved.square().mean(dims, keepdim=True) + eps).sqrt().detach()


@FEW
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), axes=st.integers(1, 3), dtype=DTYPES,
       affine=st.booleans())
def test_layer_and_root_mean_square_norms(shape, axes, dtype, affine):
    shape = (1, *shape)
    axes = min(axes, len(shape) - 1)
    own, dims = shape[-axes:], list(range(-axes, 0))
    weight = torch.linspace(0.5, 1.5, torch.Size(own).numel()).reshape(own) if affine else None

    def given_to(z):
        return None if weight is None else weight.to(z)

    compare(lambda z: F.layer_norm(z, own, given_to(z), given_to(z), 1e-2),
            lambda z: _scaled(z, dims, 1e-2) * (1 if weight is None else given_to(z)) + (
                0 if weight is None else given_to(z)), shape, dtype)
    compare(lambda z: F.rms_norm(z, own, given_to(z), 1e-2),
            lambda z: _scaled(z, dims, 1e-2, False) * (1 if weight is None else given_to(z)), shape, dtype)


@FEW
@given(groups=st.integers(1, 3), size=st.integers(1, 2), places=st.integers(2, 5), dtype=DTYPES)
def test_group_and_instance_norms(groups, size, places, dtype):
    channels = groups * size

    def by_groups(count):
        return lambda z: _scaled(z.reshape(1, count, -1), -1, 1e-2).reshape(z.shape)

    compare(lambda z: F.group_norm(z, groups, eps=1e-2), by_groups(groups), (1, channels, places), dtype)
    compare(lambda z: F.instance_norm(z, eps=1e-2), by_groups(channels), (1, channels, places), dtype)


@FEW
@given(batch=st.sampled_from([((), ()), ((3,), (3,)), ((2, 3), (3,)), ((1,), (4,)), ((2, 1), (1, 3))]),
       rows=st.integers(1, 3), inner=st.integers(1, 3), columns=st.integers(1, 3), dtype=DTYPES)
def test_products_of_matrices(batch, rows, inner, columns, dtype):
    left, right = (*batch[0], rows, inner), (*batch[1], inner, columns)
    sizes = torch.Size(left).numel(), torch.Size(right).numel()

    def product(hold_left, hold_right):
        def function(z):
            a, b = z[0, :sizes[0]].reshape(left), z[0, sizes[0]:].reshape(right)
            return hold_left(a) @ hold_right(b)
        return function

    def same(z):
        return z

    compare(product(same, same), lambda z: (product(same, torch.Tensor.detach)(z)
                                            + product(torch.Tensor.detach, same)(z)) / 2, (1, sum(sizes)), dtype)


@pytest.mark.parametrize("function", [
    lambda z: z[:, :0].softmax(-1), lambda z: F.layer_norm(z[:, :0], (3,)), lambda z: z[:, :0] @ z[:, :0].mT,
    lambda z: F.scaled_dot_product_attention(z[:, :0], z, z), lambda z: z[:, :0].sum(1) * z.sum(1),
    lambda z: z[:, :0] * z[:, :0].cos(), lambda z: z[:, :0].cumsum(-1), lambda z: F.glu(z[:, :0, :2], -1)])
@pytest.mark.parametrize("gates", ["tangent", "frozen"])
def test_nothing_at_all(function, gates):
    model, x = Function(lambda z: torch.cat([z.flatten(1), function(z).flatten(1)], 1), 1, 3).double().eval(), (
        torch.randn(1, 2, 3).double())
    local = specxai.linearize(model, x, gates=gates, backend="reference")
    wanted = torch.autograd.functional.jacobian(model, x).reshape(-1, 6)
    if gates == "tangent":
        assert (local.jacobian.to_dense() - wanted).norm() <= 1e-13 * wanted.norm()
    assert local.exactness <= 1e-13


@pytest.mark.parametrize("gates", ["tangent", "frozen"])
def test_a_block_is_its_columns(gates, dtype):
    """What is made of many probes at once is what is made of each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(12, 3, 16, batch_first=True, activation="gelu")).eval().to(dtype)
    x = torch.randn(1, 5, 12, dtype=dtype)
    J = specxai.linearize(model, x, gates=gates, backend="reference").jacobian
    V = torch.randn(60, 7, dtype=dtype)
    for product in (J.matmat, J.rmatmat):
        whole, columns = product(V), torch.cat([product(v[:, None]) for v in V.T], 1)
        assert (whole - columns).norm() <= RELATIVE[dtype] * whole.norm()
