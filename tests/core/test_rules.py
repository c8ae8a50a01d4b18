"""Every rule against torch: J·v by torch.func.jvp, Jᵀ·u by autograd, the adjoint identity, and the bias two ways."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import specxai
from specxai.rules import rule

IMAGE, LINE, VECTOR = (1, 4, 9, 10), (1, 4, 12), (1, 6)


class Call(nn.Module):
    """A function as a model, with a weighted layer before it so that its input is no leaf."""

    def __init__(self, function, shape):
        super().__init__()
        self.function = function
        self.before = nn.Linear(shape[-1], shape[-1])

    def forward(self, x):
        return self.function(self.before(x))


def _assigned(z):
    out = torch.zeros_like(z)
    out[:, 1:3] = z[:, :2]
    out[:, 0] = 2 * z[:, 3]
    out[0, 3, 0] += 1
    return out + z


CASES = {
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1), IMAGE),
    "conv2d grouped dilated": (nn.Conv2d(4, 8, 3, dilation=2, padding=(2, 1), groups=2, bias=False), IMAGE),
    "conv2d same, even kernel": (nn.Conv2d(4, 3, (2, 4), padding="same"), IMAGE),
    "conv2d valid": (nn.Conv2d(4, 3, 3, padding="valid"), IMAGE),
    "conv2d depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), IMAGE),
    "conv1d": (nn.Conv1d(4, 5, 3, stride=2, dilation=2), LINE),
    "conv1d same": (nn.Conv1d(4, 5, 4, padding="same"), LINE),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1), IMAGE),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 2, 3, stride=2), LINE),
    "linear": (nn.Linear(10, 3), IMAGE),
    "addmm": (lambda z: torch.addmm(torch.arange(3.0).to(z), z, torch.ones(6, 3).to(z)), VECTOR),
    "matmul": (lambda z: torch.eye(9, dtype=z.dtype)[:4] @ z, IMAGE),
    "matmul right": (lambda z: z @ torch.linspace(0, 1, 20, dtype=z.dtype).reshape(10, 2), IMAGE),
    "batch norm": (nn.BatchNorm2d(4), IMAGE),
    "batch norm 1d": (nn.BatchNorm1d(6, affine=False), VECTOR),
    "relu": (nn.ReLU(inplace=True), IMAGE),
    "leaky relu": (nn.LeakyReLU(0.2), IMAGE),
    "prelu": (nn.PReLU(4), IMAGE),
    "relu6": (lambda z: F.relu6(8 * z), IMAGE),
    "hardtanh": (nn.Hardtanh(-0.3, 0.5), IMAGE),
    "clamp": (lambda z: z.clamp(-0.2, 0.4), IMAGE),
    "clamp min": (lambda z: z.clamp(min=0.1), IMAGE),
    "abs": (torch.abs, IMAGE),
    "where": (lambda z: torch.where(z > 0.1, z, 2 * z.flip(1)) + torch.where(z > 0, 0.5, z), IMAGE),
    "mask": (lambda z: z * (z > 0) + (z > 0.2).to(z) * z.mean(), IMAGE),
    "sigmoid": (torch.sigmoid, IMAGE),
    "tanh": (torch.tanh, IMAGE),
    "gelu": (F.gelu, IMAGE),
    "softmax": (lambda z: z.softmax(1), IMAGE),
    "log softmax": (lambda z: z.log_softmax(-2), IMAGE),
    "max pool": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "max pool dilated": (nn.MaxPool2d(2, 1, dilation=2), IMAGE),
    "max pool 1d": (nn.MaxPool1d(3, 2), LINE),
    "max pool 3d": (nn.MaxPool3d(2), (1, 2, 4, 6, 6)),
    "adaptive max pool": (nn.AdaptiveMaxPool2d((4, 3)), IMAGE),
    "max over an axis": (lambda z: z.max(1).values, IMAGE),
    "min over an axis": (lambda z: z.min(-1, keepdim=True)[0], IMAGE),
    "avg pool": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
    "avg pool 1d": (nn.AvgPool1d(3, 1), LINE),
    "adaptive avg pool": (nn.AdaptiveAvgPool2d((4, 3)), IMAGE),
    "adaptive avg pool 1": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "dropout": (nn.Dropout(0.5), IMAGE),
    "constants": (lambda z: (2 - z) / 3 + z * torch.arange(10.0).to(z) - 0.5 - (-z).mul(4), IMAGE),
    "twice the same": (lambda z: (lambda y: y + y)(F.relu(z)), IMAGE),
    "square": (lambda z: (lambda y: y * y)(F.relu(z)), IMAGE),
    "cat of the same": (lambda z: (lambda y: torch.cat([y, y, z], 1))(F.relu(z)), IMAGE),
    "stack of the same": (lambda z: (lambda y: torch.stack([y, y], 1))(F.relu(z)), IMAGE),
    "absolute value with zeros": (lambda z: (z * (z > 0)).abs() + z.abs(), IMAGE),
    "slice assignment": (_assigned, IMAGE),
    "sub alpha": (lambda z: torch.sub(z, z.flip(2), alpha=3), IMAGE),
    "residual": (lambda z: z + F.relu(z) - 0.5 * z, IMAGE),
    "residual broadcast": (lambda z: z + z.mean((2, 3), keepdim=True), IMAGE),
    "gate": (lambda z: z * torch.sigmoid(z.mean((2, 3), keepdim=True)), IMAGE),
    "cat": (lambda z: torch.cat([z, 2 * z, torch.ones_like(z[:, :1])], 1), IMAGE),
    "stack": (lambda z: torch.stack([z, F.relu(z)], 2), IMAGE),
    "split": (lambda z: torch.cat(z.split([1, 3], 1)[::-1], 1), IMAGE),
    "chunk": (lambda z: torch.mul(z.chunk(2, 1)[1], 3), IMAGE),
    "unbind": (lambda z: z.unbind(1)[2] - z.unbind(1)[0], IMAGE),
    "slice": (lambda z: z[:, 1:4:2, ::3, -2:], IMAGE),
    "select": (lambda z: z[:, 2], IMAGE),
    "index": (lambda z: z[:, [3, 0, 0]], IMAGE),
    "pad": (lambda z: F.pad(z, (1, 2, 0, -3), value=0.7), IMAGE),
    "reflect pad": (nn.ReflectionPad2d((1, 2, 3, 0)), IMAGE),
    "replicate pad": (nn.ReplicationPad2d(1), IMAGE),
    "permute": (lambda z: z.permute(0, 3, 1, 2), IMAGE),
    "transpose": (lambda z: z.transpose(1, 3), IMAGE),
    "view": (lambda z: z.reshape(1, 2, 2, -1).flatten(1).unflatten(1, (10, 36)).unsqueeze(0).squeeze(0), IMAGE),
    "expand": (lambda z: z[:, :1].expand(1, 5, 9, 10), IMAGE),
    "pixel shuffle": (nn.PixelShuffle(2), IMAGE),
    "mean": (lambda z: z.mean((1, -1)), IMAGE),
    "mean all": (lambda z: z.mean().reshape(1), IMAGE),
    "sum": (lambda z: z.sum(2, keepdim=True), IMAGE),
    "bilinear upsampling": (lambda z: F.interpolate(z, scale_factor=2, mode="bilinear"), IMAGE),
}
LIVE = {  # two factors that depend on x, and statistics of x
    "attention": (lambda z: F.scaled_dot_product_attention(z, z.flip(1), z.cos()), IMAGE),
    "causal attention": (lambda z: F.scaled_dot_product_attention(z, z.flip(1), z.cos(), is_causal=True), IMAGE),
    "products of matrices": (lambda z: z[:, :2] @ z[:, 2:].mT, IMAGE),
    "products with broadcasting": (lambda z: z[0, 0] @ z.mT[:, 1:], IMAGE),
    "matrix times vector": (lambda z: z[0] @ z[0, 0, 0], IMAGE),
    "vector times matrix": (lambda z: z[0, 0, :, 0] @ z[0], IMAGE),
    "scalar product": (lambda z: torch.dot(z[0, 0, 0], z[0, 1, 2]).reshape(1), IMAGE),
    "batched add and product": (lambda z: torch.baddbmm(z[0, :, :, :9], z[0], z[0].mT, beta=0.3, alpha=2), IMAGE),
    "add and product": (lambda z: torch.addmm(z[0, 0, 0, :9], z[0, 1], z[0, 2].mT, beta=0.3, alpha=2), IMAGE),
    "einsum": (lambda z: torch.einsum("bcij,bdij->bcd", z, z.sin()), IMAGE),
    "outer product": (lambda z: z[0, 0, :, None] * z[0, 0, None, :], IMAGE),
    "add and quotient": (lambda z: torch.addcdiv(z, z.flip(1), z.square() + 1, value=0.5), IMAGE),
    "add and product of numbers": (lambda z: torch.addcmul(z, z.flip(1), z.square(), value=0.5), IMAGE),
    "division by itself": (lambda z: z / (2 + z.abs().sum(1, keepdim=True)), IMAGE),
    "a constant over it": (lambda z: 2 / (z + 5), IMAGE),
    "layer norm": (lambda z: F.layer_norm(z, (9, 10), torch.arange(90.0).to(z).reshape(9, 10), None), IMAGE),
    "layer norm module": (nn.LayerNorm(10), IMAGE),
    "group norm": (nn.GroupNorm(2, 4), IMAGE),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), IMAGE),
    "root mean square norm": (nn.RMSNorm(10), IMAGE),
    "batch norm of the batch": (lambda z: F.batch_norm(z, None, None, training=True), IMAGE),
    "local response": (nn.LocalResponseNorm(3), IMAGE),
    "normalised": (lambda z: F.normalize(z, dim=1), IMAGE),
    "variance": (lambda z: z.var((1, 2), correction=0), IMAGE),
    "deviation and mean": (lambda z: sum(torch.std_mean(z, 1)), IMAGE),
    "length": (lambda z: torch.linalg.vector_norm(z, 3, 1), IMAGE),
    "log-sum-exp": (lambda z: z.logsumexp((1, 2)), IMAGE),
    "product of all": (lambda z: (1 + z / 9).prod(1), IMAGE),
    "gated linear unit": (lambda z: F.glu(z, 1), IMAGE),
    "mixed": (lambda z: torch.lerp(z, z.flip(1), 0.3) + torch.lerp(z, torch.ones_like(z), z.new_tensor(0.2)), IMAGE),
    "larger and smaller": (lambda z: torch.maximum(z, z.flip(1)) + torch.minimum(z, z.new_tensor(0.1)), IMAGE),
    "power": (lambda z: (z.abs() + 1) ** z.sigmoid() + 2 ** z, IMAGE),
    "arc": (lambda z: torch.atan2(z, z.flip(1) + 9), IMAGE),
    "steps": (lambda z: z.round() + z.floor() * z + z.sign(), IMAGE),
    "cube": (lambda z: z * z * z + z.pow(3), IMAGE),
    "powers": (lambda z: z ** 0 + z.abs() ** 0.5 + z ** 2 + (z + 9) ** -1.5 + z.relu() ** 1, IMAGE),
    "gelu by tanh": (lambda z: F.gelu(z, approximate="tanh"), IMAGE),
}
SELECTIONS = {
    "largest": (lambda z: z.amax((1, 2)), IMAGE),
    "largest of ties": (lambda z: (z * 0).amin(1) + z.relu().amax(1), IMAGE),
    "largest of an axis": (lambda z: z.max(1).values + z.min(1).values, IMAGE),
    "largest of all": (lambda z: z.max().reshape(1), IMAGE),
    "sorted": (lambda z: z.sort(1, descending=True).values, IMAGE),
    "top": (lambda z: z.topk(3, -1).values, IMAGE),
    "median": (lambda z: z.median(-1).values, IMAGE),
    "gathered": (lambda z: z.gather(1, torch.tensor([[[[2, 0, 0]]]])), IMAGE),
    "taken": (lambda z: torch.take_along_dim(z, z.argsort(2), 2), IMAGE),
    "index select": (lambda z: z.index_select(1, torch.tensor([2, 0, 0])), IMAGE),
    "repeated": (lambda z: z.repeat_interleave(2, 1) + z.repeat(1, 2, 1, 1), IMAGE),
    "rolled": (lambda z: z.roll((2, 1), (2, 3)).flip(2), IMAGE),
    "triangle": (lambda z: z.tril(1) + z.triu(-2), IMAGE),
    "cumsum": (lambda z: z.cumsum(-1), IMAGE),
    "windows": (lambda z: z.unfold(2, 3, 2) * 2, IMAGE),
    "windows of planes": (lambda z: F.fold(2 * F.unfold(z, 3, stride=2), (9, 10), 3, stride=2), IMAGE),
    "nearest upsampling": (lambda z: F.interpolate(z, (13, 17)), IMAGE),
    "exact nearest upsampling": (lambda z: F.interpolate(z, (13, 7), mode="nearest-exact"), IMAGE),
    "bicubic upsampling": (lambda z: F.interpolate(z, (13, 17), mode="bicubic"), IMAGE),
    "smoothed bilinear": (lambda z: F.interpolate(z, (5, 4), mode="bilinear", antialias=True), IMAGE),
    "linear upsampling": (lambda z: F.interpolate(z, 17, mode="linear", align_corners=True), LINE),
    "trilinear upsampling": (lambda z: F.interpolate(z, scale_factor=2, mode="trilinear"), (1, 2, 4, 6, 6)),
    "sampled on a grid": (lambda z: F.grid_sample(z, F.affine_grid(
        torch.tensor([[[0.7, 0.2, 0.1], [-0.1, 0.9, 0.0]]]).to(z), [1, 4, 5, 6], False), align_corners=False), IMAGE),
    "pixel unshuffle": (nn.PixelUnshuffle(3), (1, 4, 9, 9)),
    "transposed convolution of volumes": (nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 4, 6, 6)),
    "written by index": (lambda z: z.index_put((torch.tensor([0]), torch.tensor([1, 3])), z[0, :2] * 2), IMAGE),
    "written by mask": (lambda z: z.masked_scatter(torch.arange(10) > 6, z.flip(1)), IMAGE),
    "scattered": (lambda z: torch.ones_like(z).scatter(
        1, torch.tensor([3, 2]).reshape(1, 2, 1, 1).expand(1, 2, 9, 10), z[:, :2]), IMAGE),
    "copied by index": (lambda z: z.index_copy(1, torch.tensor([3, 1]), z[:, :2] * 3), IMAGE),
    "diagonal": (lambda z: torch.diag_embed(z[0, 0], 1), IMAGE),
    "steps of a slice": (lambda z: z[..., 1::4] + z[:, :, 2, None, 1:4], IMAGE),
}
CASES |= LIVE | SELECTIONS
GENERIC = {
    "distances": (lambda z: torch.cdist(z[0, 0], z[0, 1]), IMAGE),
    "cumulative product": (lambda z: z.cumprod(-1), IMAGE),
    "inverse": (lambda z: torch.linalg.inv(z[0, :, :4, :4] + 5 * torch.eye(4).to(z)), IMAGE),
}


def build(function, shape) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    if isinstance(function, nn.Module):
        for buffer in function.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return Call(function, shape).eval().double(), torch.randn(shape, dtype=torch.float64)


def check(model: nn.Module, x: torch.Tensor) -> specxai.Local:
    local = specxai.linearize(model, x)
    m, n = local.jacobian.shape
    V, U = torch.randn(n, 3, dtype=x.dtype), torch.randn(m, 3, dtype=x.dtype)
    JV, JU = local.jacobian @ V, local.jacobian.T @ U
    # Not torch.func.jacrev, which is wrong for cdist in torch 2.13.
    dense = torch.autograd.functional.jacobian(model, x).reshape(m, n)
    scale = max(1.0, dense.norm().item())
    assert (JV - dense @ V).norm() <= 1e-12 * scale * V.norm()
    assert (JU - dense.T @ U).norm() <= 1e-12 * scale * U.norm()
    assert ((V * JU).sum() - (JV * U).sum()).abs() <= 1e-11 * scale * V.norm() * U.norm()
    assert local.exactness <= 1e-12
    total = sum(local.bias_contributions().values(), torch.zeros_like(local.output))
    assert (total - local.bias).norm() <= 1e-12 * max(1.0, local.output.norm().item())
    return local


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    local = check(*build(*CASES[name]))
    assert local.generic_nodes == []


@pytest.mark.parametrize("name", CASES)
def test_rule_in_a_plan(name):
    """What the rule says of its units, entries or weights is what its terms do."""
    model, x = build(*CASES[name])
    ours, wanted = (specxai.linearize(model, x, backend=backend, verify=False).jacobian
                    for backend in ("torch", "reference"))
    V, U = (torch.randn(side, 3, dtype=x.dtype) for side in reversed(ours.shape))
    for got, want in ((ours @ V, wanted @ V), (ours.T @ U, wanted.T @ U)):
        assert (got - want).norm() <= 1e-12 * max(1.0, want.norm().item())


def test_hardsigmoid():
    # Against its definition: torch's own derivative holds 1/6 in single precision.
    model, x = build(lambda z: F.hardsigmoid(6 * z), IMAGE)
    plain = Call(lambda z: (6 * z + 3).clamp(0, 6) / 6, IMAGE).double().eval()
    plain.load_state_dict(model.state_dict())
    local, wanted = specxai.linearize(model, x), check(plain, x)
    assert (local.jacobian.to_dense() - wanted.jacobian.to_dense()).norm() <= 1e-14 * wanted.jacobian.to_dense().norm()
    assert local.exactness <= 1e-14
    assert local.generic_nodes == []


@pytest.mark.parametrize("name", LIVE | SELECTIONS)
def test_rule_with_factors_held(name):
    """Against the witness, in both precisions: J x + Σ biases is the value, whatever is held."""
    model, x = build(*CASES[name])
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-3)):
        local = specxai.linearize(model.to(dtype), x.to(dtype), gates="frozen")
        assert local.generic_nodes == []
        assert local.exactness <= bound
        assert local.agreement <= max(bound, local.agreement_details.tolerance)
        v, u = torch.randn(x.numel(), 3, dtype=dtype), torch.randn(local.output.numel(), 3, dtype=dtype)
        forward, adjoint = (local.jacobian @ v) * u, v * (local.jacobian.T @ u)
        assert (forward.sum() - adjoint.sum()).abs() <= bound * max(1, forward.norm(), adjoint.norm())


@pytest.mark.parametrize("name", GENERIC)
def test_generic_node_is_right_and_named(name):
    local = check(*build(*GENERIC[name]))
    assert local.generic_nodes
    assert all(node in local.report() for node in local.generic_nodes)


@pytest.mark.parametrize("function", [torch.sigmoid, torch.tanh, F.gelu, F.silu, torch.relu, F.leaky_relu, torch.exp])
def test_frozen_policy_has_no_offset_but_the_value_at_zero(function):
    model, x = build(function, VECTOR)
    local = specxai.linearize(model, x, gates="frozen")
    at_zero = function(torch.zeros(6, dtype=torch.float64))
    parts = local.bias_contributions()
    assert set(parts) == ({"before"} if not at_zero.any() else {"before", next(n for n in parts if n != "before")})
    z = model.before(x).detach()
    slope = (function(z) - at_zero) / z
    expected = slope.flatten()[:, None] * model.before.weight.detach()
    assert (local.jacobian.to_dense() - expected).norm() <= 1e-14 * expected.norm()
    assert local.exactness <= 1e-14
    assert local.agreement <= 1e-14
    assert local.agreement_details.witness == "frozen gates"


@pytest.mark.parametrize("function", [lambda z: z * z.flip(1), lambda z: z.sigmoid() * z.flip(1).tanh()])
def test_frozen_factors_of_one_kind_take_half_each(function):
    model, x = build(function, VECTOR)
    frozen, tangent = (specxai.linearize(model, x, gates=gates) for gates in ("frozen", "tangent"))
    assert frozen.agreement <= 1e-14
    assert frozen.exactness <= 1e-14
    z = torch.nn.functional.linear(x, model.before.weight, model.before.bias).detach()
    if function(torch.ones(1, 6)).max() == 1:  # a plain product: half of the derivative
        assert torch.allclose(frozen.jacobian.to_dense(), tangent.jacobian.to_dense() / 2, rtol=1e-13)
        assert torch.allclose(frozen.bias, function(z) - frozen.jacobian.matvec(x.flatten()), atol=1e-14)


def test_frozen_product_holds_the_activated_factor():
    model, x = build(lambda z: F.silu(z[:, :3]) * z[:, 3:], VECTOR)
    local = specxai.linearize(model, x, gates="frozen")
    z = model.before(x).detach()
    expected = torch.diag(F.silu(z[0, :3])) @ model.before.weight[3:].detach()
    assert (local.jacobian.to_dense() - expected).norm() <= 1e-14


def test_zero_input_to_frozen_sigmoid_is_finite():
    local = specxai.linearize(nn.Sequential(nn.Sigmoid()).eval(), torch.zeros(1, 3), gates="frozen")
    assert torch.isfinite(local.jacobian.to_dense()).all()
    assert local.exactness <= 1e-7


def test_an_overload_has_one_rule():
    with pytest.raises(ValueError, match=r"relu.default has a rule already, relu"):
        rule("relu.default")(lambda call: None)
