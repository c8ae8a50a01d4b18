"""`agreement`: what it is without a fault, what it refuses, what it warns of, and inputs that once broke it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import specxai
from nets import NETS, build
from specxai.errors import CaptureError, PrecisionWarning


class Then(nn.Module):
    """A function after a linear layer."""

    def __init__(self, function, n=6, m=6):
        super().__init__()
        self.first, self.function = nn.Linear(n, m), function

    def forward(self, x):
        return self.function(self.first(x))


def true(model, x):
    return torch.autograd.functional.jacobian(model, x).reshape(-1, x.numel())


def agrees(model, x, rtol=1e-13) -> specxai.Local:
    """The Local, whose J is torch's and whose certificates are finite."""
    local, wanted = specxai.linearize(model, x), true(model, x)
    assert (local.jacobian.to_dense() - wanted).norm() <= rtol * wanted.norm()
    assert local.agreement <= local.agreement_details.tolerance
    assert local.exactness <= rtol
    assert all(torch.isfinite(part).all() for part in local.bias_contributions().values())
    return local


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("gates", ["tangent", "frozen"])
def test_without_a_fault_it_is_rounding(name, gates, dtype):
    local = specxai.linearize(*build(name, dtype), gates=gates)
    assert local.agreement == float(local.agreement_details) <= 20 * torch.finfo(dtype).eps
    assert local.agreement_details.cancellation == 1


def test_unmeasured_is_none_and_not_zero():
    model, x = build("perceptron")
    assert specxai.linearize(model, x, verify=False).agreement is None
    captured = specxai.capture(model, x, verify=False)
    assert captured.linearize(x).agreement is None
    assert captured.linearize(x, verify=True).agreement <= 1e-14
    assert specxai.linearize(captured, x, verify=True).agreement <= 1e-14


def test_every_local_is_measured_not_the_capture_alone():
    model, x = build("perceptron")
    captured = specxai.capture(model, x)
    with torch.no_grad():
        model[0].weight[0] *= 1.5  # the capture holds the model's own tensors: still the same function
    assert captured.linearize(2 * x).agreement <= 1e-14
    model[0] = copy.deepcopy(model[0])
    with torch.no_grad():
        model[0].weight[0] *= 1.5
    with pytest.raises(CaptureError, match=r"output differs from the model's .* A setting that changed"):
        captured.linearize(x)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_it_does_not_depend_on_scale(scale):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 3)).eval(), torch.randn(1, 30)
    for parameter in model[2].parameters():
        parameter.data *= scale
    assert specxai.linearize(model, x).agreement <= 1e-6


def test_it_leaves_random_state_and_defaults_alone():
    model, x = build("skip", torch.float32)
    captured = specxai.capture(model, x)
    state = torch.get_rng_state()
    first = captured.linearize(x).agreement_details
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert captured.linearize(x).agreement_details == first


class Lying(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_a_backward_that_is_not_the_derivative_is_named():
    with pytest.raises(CaptureError, match=r"Jᵀ differs .* side with J: .*Lying.* straight-through"):
        specxai.linearize(Then(Lying.apply).eval().double(), torch.randn(1, 6).double())


def test_central_differences_stand_in_where_torch_cannot_differentiate():
    class Overwritten(nn.Module):
        def forward(self, x):
            y = torch.sigmoid(x)
            return y.mul_(2) + torch.tanh(y).mul_(3)

    x = torch.randn(1, 3, dtype=torch.float64)
    local = specxai.linearize(Overwritten().eval(), x)
    assert local.agreement_details.witness == "central difference"
    s = torch.sigmoid(x)
    wanted = 2 * s * (1 - s) * (1 + 3 * (1 - torch.tanh(2 * s) ** 2))
    assert torch.allclose(local.jacobian.to_dense(), torch.diag(wanted[0]), rtol=1e-13)


def test_central_differences_of_a_model_that_keeps_a_value_with_its_graph():
    """As vision transformers keep their attention's biases: torch deep-copies no tensor that has a history."""
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.kept = nn.Parameter(torch.ones(3, dtype=torch.float64)), {}

        def forward(self, x):
            self.kept.setdefault("twice", 2 * self.weight)
            y = torch.sigmoid(x)
            return y.mul_(self.kept["twice"]) + torch.tanh(y)

    local = specxai.linearize(Keeping().eval(), torch.randn(1, 3, dtype=torch.float64))
    assert local.agreement_details.witness == "central difference"


def test_central_differences_decide_where_torchs_backward_is_wrong():
    """torch 2.13 on CPU takes a permuted cotangent of batch norm for a contiguous one."""
    class Tokens(nn.Module):
        def forward(self, x):
            return x.flatten(2).transpose(1, 2)

    for norm, tail in ((nn.InstanceNorm2d(8), nn.Identity()), (nn.BatchNorm2d(8), nn.LayerNorm(8))):
        model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), norm, Tokens(), tail, nn.Linear(8, 3),
                              nn.Flatten()).double().eval()
        x, v, u = (torch.randn(s, dtype=torch.float64) for s in ((1, 2, 4, 4), (1, 2, 4, 4), (48,)))
        with torch.no_grad():
            wanted = (u @ ((model(x + 1e-6 * v) - model(x - 1e-6 * v)) / 2e-6).flatten()).item()
        J = specxai.linearize(model, x).jacobian
        assert (J.rmatvec(u) @ v.flatten()).item() == pytest.approx(wanted, rel=1e-6)
        assert (u @ J.matvec(v.flatten())).item() == pytest.approx(wanted, rel=1e-6)


def test_a_saturated_softmax_is_accepted_and_cancellation_named():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    for parameter in body[2].parameters():
        parameter.data *= 150
    model, warned = nn.Sequential(body, nn.Softmax(1)).eval(), 0
    for _ in range(30):
        x = torch.randn(1, 12)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            local = specxai.linearize(model, x)
        wanted = true(model, x)
        assert (local.jacobian.reference.rmatmat(torch.eye(10)).T - wanted).norm() <= 1e-3 * wanted.norm()
        warned += any(w.category is PrecisionWarning and "cancellation" in str(w.message)
                      and "logits" in str(w.message) and "double()" in str(w.message) for w in seen)
    assert warned >= 5


def test_an_infinite_derivative_is_named():
    with pytest.raises(CaptureError, match=r"derivative of aten.sqrt.default in layer \S+ \(.*\) is infinite"):
        specxai.linearize(Then(lambda z: (z - 100).relu().sqrt()).eval(), torch.randn(1, 6))


MASK = torch.triu(torch.ones(5, 5), 1).bool()
INFINITE = torch.where(MASK, -torch.inf, 0.0).double()
MASKS = {
    "masked fill": lambda s: s.masked_fill(MASK, -torch.inf).softmax(-1),
    "added": lambda s: (s + INFINITE).softmax(-1),
    "where": lambda s: torch.where(MASK, -torch.inf, s).softmax(-1),
    "log softmax": lambda s: (s + INFINITE).log_softmax(-1).exp(),
    "exp": lambda s: s.masked_fill(MASK, -torch.inf).exp(),
    "sigmoid": lambda s: s.masked_fill(MASK, -torch.inf).sigmoid(),
    "clamp": lambda s: s.masked_fill(MASK, -torch.inf).clamp(-2, 2),
    "maximum": lambda s: torch.maximum(s.masked_fill(MASK, -torch.inf), -torch.ones_like(s)),
    "amax": lambda s: s.masked_fill(MASK, -torch.inf).amax(-1),
    "logsumexp": lambda s: s.masked_fill(MASK, -torch.inf).logsumexp(-1),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_minus_infinity(name):
    agrees(Then(MASKS[name], 8, 5).eval().double(), torch.randn(1, 5, 8, dtype=torch.float64))


def test_infinite_logits_leave_the_rest_finite():
    model = Then(lambda z: z.masked_fill(torch.arange(6) == 2, -torch.inf)).eval().double()
    agrees(model, torch.randn(1, 6, dtype=torch.float64))


REDUCTIONS = {
    "std": lambda z: z.std(-1) + z.var(-1), "norm": lambda z: torch.linalg.vector_norm(z, dim=-1),
    "logsumexp": lambda z: z.logsumexp(-1), "prod": lambda z: z.prod(-1), "cumsum": lambda z: z.cumsum(-1),
    "normalised": lambda z: F.normalize(z, dim=-1), "standardised": lambda z: (z - z.mean()) / (z.std() + 1e-2),
    "layer norm": lambda z: F.layer_norm(z, z.shape[-1:]),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_reductions_of_a_constant(name, value):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            z = REDUCTIONS[name](x)
            return z + self.head(x)[..., :1].squeeze(-1) if z.ndim < x.ndim else self.head(z)

    agrees(Net().eval().double(), torch.full((1, 2, 4), value, dtype=torch.float64), rtol=1e-10)


@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("product", [lambda A, z: A @ z[0], lambda A, z: z[0].T @ A,
                                     lambda A, z: torch.sparse.mm(A, z[0])])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_constants(layout, product):
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            A = (torch.arange(16.0).reshape(4, 4) % 3).double()
            self.register_buffer("A", {"coo": A.to_sparse, "csr": A.to_sparse_csr}[layout]())
            self.first = nn.Linear(3, 5)

        def forward(self, x):
            return torch.relu(product(self.A, self.first(x))).sum(0, keepdim=True)

    agrees(Graph().eval().double(), torch.randn(1, 4, 3, dtype=torch.float64))


@pytest.mark.parametrize("function", [
    lambda z: torch.clamp(z, 0.4, -0.2), lambda z: torch.clamp(z, 0.1, 0.1), lambda z: z.clip(0.3, -0.3) + z,
    lambda z: z / torch.arange(3, 9), lambda z: z * torch.arange(3, 9), lambda z: z - torch.arange(6) / 7,
    lambda z: z / torch.tensor(7), lambda z: z.sigmoid() / torch.tensor(3, dtype=torch.int32)],
    ids=["empty clamp", "point clamp", "clip", "int divisor", "int factor", "int shift", "int scalar", "int32"])
def test_constants_of_other_kinds(function):
    agrees(Then(function).eval().double(), torch.randn(1, 6, dtype=torch.float64))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_regions(low):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            with torch.autocast("cpu", dtype=low):
                y = self.body(x).relu()
            return self.head(y.float())

    model, x = Mixed().eval(), torch.randn(1, 6)
    local = specxai.linearize(model, x)
    assert local.agreement <= local.agreement_details.tolerance <= 20 * torch.finfo(low).eps
    assert (local.jacobian.to_dense() - true(model, x)).norm() <= torch.finfo(low).eps * true(model, x).norm()


@pytest.mark.parametrize("layer", [nn.LayerNorm(8), nn.GELU(), nn.ReLU(), nn.Softmax(-1), nn.AvgPool1d(2)])
def test_inside_inference_mode(layer):
    tail = nn.Linear(8 if not isinstance(layer, nn.AvgPool1d) else 4, 3)
    model, x = nn.Sequential(nn.Linear(6, 8), layer, tail).eval().double(), torch.randn(1, 6, dtype=torch.float64)
    wanted = true(model, x)
    with torch.inference_mode():
        local = specxai.linearize(model, x)
        inside = local.jacobian.to_dense()
        weights = specxai.linearize(copy.deepcopy(model), x.clone()).jacobian.to_dense()
    assert not torch.is_inference_mode_enabled()
    assert local.agreement <= 1e-14
    for got in (inside, local.jacobian.to_dense(), weights):
        assert (got - wanted).norm() <= 1e-13 * wanted.norm()


def test_constant_outputs_agree_exactly():
    local = specxai.linearize(Then(lambda z: 0 * z + 3).eval(), torch.randn(1, 6))
    assert local.agreement == 0


def test_layers_without_units():
    model = nn.Sequential(nn.Linear(6, 0), nn.ReLU(), nn.Linear(0, 3)).eval()
    x = torch.randn(1, 6)
    for backend in ("reference", "auto"):
        local = specxai.linearize(model, x, backend=backend)
        assert local.agreement == 0
        assert not local.jacobian.to_dense().any()
        assert not (local.jacobian @ torch.randn(6, 20)).any()
        assert torch.equal(local.bias, model[2].bias.detach()[None])


@pytest.mark.parametrize("gates", ["tangent", "frozen", {"product": "half"}, {"softmax": "held"}])
@pytest.mark.parametrize("function", [
    lambda x: x * x.detach(),
    lambda x: x / (1 + x.square()).detach(),
    lambda x: x.detach().relu() * x,
    lambda x: x.softmax(-1) * (2 * x.detach() + 1),
    lambda x: x @ (x.detach() @ x.detach().mT),
    lambda x: (x + x.detach()) * x.sin(),
], ids=["product", "quotient", "activated", "pattern", "matrices", "sum"])
def test_what_the_model_detached_is_constant_under_every_policy(function, gates):
    class Detaches(nn.Module):
        def forward(self, x):
            return function(x)

    local = specxai.linearize(Detaches().eval(), torch.randn(1, 4, 4, dtype=torch.float64), gates=gates)
    assert local.agreement < 1e-14
    assert local.exactness < 1e-14
