"""The policy: what `gates=` may be, its text, which factor it holds, and the mixtures that others call by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import specxai
from specxai.rules.policy import KINDS, Policy, behind_weights, strongest
from twins import pair

EVERY = [Policy(softmax, norm, activation, product) for softmax in KINDS["softmax"] for norm in KINDS["norm"]
         for activation in KINDS["activation"] for product in KINDS["product"]]
FACTORS = ("", "activation", "mixed", "softmax", "norm")


@pytest.mark.parametrize("policy", EVERY, ids=lambda policy: policy.name)
def test_its_text_is_read_back(policy):
    assert Policy.of(policy.name) == policy
    assert Policy.of(policy) is policy


def test_a_mapping_changes_its_base():
    assert Policy.of({"base": "frozen", "norm": "tangent"}) == Policy("held", "tangent", "held", "held")
    assert Policy.of({"softmax": "held"}) == Policy(softmax="held")
    assert Policy.of({}) == Policy.of("tangent") == Policy()


@pytest.mark.parametrize("gates, message", [
    ("froze", "unknown gate policy 'froze'; choose tangent"),
    ({"base": "linear"}, "unknown gate policy 'linear'"),
    ({"attention": "held"}, "unknown kind of factor 'attention' in gates; the kinds are softmax, norm, act"),
    ({"norm": "half"}, r"gates\['norm'\] is 'half'; choose tangent or held"),
    ({"product": True}, r"gates\['product'\] is True; choose tangent or held or half"),
])
def test_what_it_refuses(gates, message):
    model = nn.Sequential(nn.Linear(3, 3)).eval()
    with pytest.raises(ValueError, match=message):
        specxai.linearize(model, torch.ones(1, 3), gates=gates)


def test_what_is_no_policy_at_all():
    with pytest.raises(TypeError, match="a mapping of kinds; got float"):
        specxai.linearize(nn.Sequential(nn.Linear(3, 3)).eval(), torch.ones(1, 3), gates=0.5)


@pytest.mark.parametrize("policy", EVERY, ids=lambda policy: policy.name)
def test_shares_are_the_derivative_or_add_up_to_the_product(policy):
    for left in FACTORS:
        for right in FACTORS:
            shares = policy.shares(left, right)
            assert shares == policy.shares(right, left)[::-1]
            assert shares == (1, 1) or sum(shares) == 1
            assert shares == (1, 1) or policy != Policy()


def test_kinds_of_what_is_made_of_several():
    assert strongest([]) == ""
    assert strongest(["activation", "norm", "softmax"]) == "norm"
    assert strongest(["mixed", "mixed"]) == "mixed"
    assert strongest(["mixed", "", "activation"]) == "activation"
    assert [behind_weights(kind) for kind in FACTORS] == ["", "", "", "mixed", ""]


def test_attribution_graphs_hold_patterns_and_scales_alone():
    """What circuit tracing differentiates: the pattern and the scale of norms detached, GELU and its like not."""
    model, by_hand, x = pair("gpt-2")
    for module in by_hand.modules():
        module.secant = lambda function, z: function(z)
    local = specxai.linearize(model, x, gates={"softmax": "held", "norm": "held"})
    wanted = torch.autograd.functional.jacobian(by_hand, x).reshape(-1, x.numel())
    assert (local.jacobian.to_dense() - wanted).norm() <= 1e-12 * wanted.norm()
    assert local.agreement <= 1e-12
    assert local.exactness <= 1e-12
    assert local.gates == "softmax=held norm=held activation=tangent product=tangent"


class Gated(nn.Module):
    """Attention with one head and a gated unit; `half` is LRP's rule for their products, as autograd sees it."""

    def __init__(self, half=lambda product, a, b: product(a, b)) -> None:
        super().__init__()
        self.q, self.k, self.v, self.gate = (nn.Linear(6, 6) for _ in range(4))
        self.half, self.silu = half, F.silu

    def forward(self, x):
        scores = self.half(torch.matmul, self.q(x), self.k(x).mT)
        z = self.half(torch.matmul, scores.softmax(-1), self.v(x))
        return self.half(torch.mul, self.silu(self.gate(z)), z)


def test_the_half_and_identity_rules_of_relevance_propagation():
    """AttnLRP: each factor of a product takes half, softmax is differentiated, activations take their ratio."""
    torch.manual_seed(0)
    model, x = Gated().double().eval(), torch.randn(1, 4, 6, dtype=torch.float64)
    ruled = Gated(lambda product, a, b: (product(a, b.detach()) + product(a.detach(), b)) / 2).double().eval()
    ruled.silu = lambda z: z * (F.silu(z) / z).detach()
    ruled.load_state_dict(model.state_dict())
    local = specxai.linearize(model, x, gates={"activation": "held", "norm": "held", "product": "half"})
    wanted = torch.autograd.functional.jacobian(ruled, x).reshape(-1, x.numel())
    assert (local.jacobian.to_dense() - wanted).norm() <= 1e-12 * wanted.norm()
    assert local.agreement <= 1e-12
    assert local.exactness <= 1e-12


@pytest.mark.parametrize("policy", EVERY, ids=lambda policy: policy.name)
@pytest.mark.parametrize("name", ["llama", "images"])
def test_every_policy_agrees_with_its_witness(policy, name):
    model, _, x = pair(name)
    local = specxai.linearize(model, x, gates=policy)
    assert local.agreement <= local.agreement_details.tolerance <= 1e-12
    assert local.exactness <= 1e-12
    assert local.agreement_details.witness == ("autograd" if policy == Policy() else "frozen gates")


def test_a_policy_is_kept_in_files(tmp_path):
    model, _, x = pair("llama")
    local = specxai.linearize(model, x, gates={"softmax": "held"})
    found = specxai.decompose(local, "head", rank=2)
    found.save(tmp_path / "d")
    loaded = type(found).load(tmp_path / "d")
    assert loaded.gates == found.gates == local.gates
    assert specxai.linearize(model, x, gates=loaded.gates).policy == local.policy
