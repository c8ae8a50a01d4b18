"""Many inputs explained together are explained as one at a time."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import specxai
from specxai.errors import LayerError, SpecXAIError
from specxai.spectral import many as module
from specxai.svd.dense import dense_svds
from specxai.zoo import load_digits_net


@pytest.fixture
def solver():
    """The real one: overrides the dense stand-in."""


class Around(nn.Module):
    """With a path round the middle, so that there is a bypass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(16, 4)

    def forward(self, x, shift=0.0):
        h = torch.relu(self.first(x)) + shift
        return self.last(torch.cat([h, torch.relu(self.middle(h))], 1))


class Mixes(Around):
    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True) * (len(x) > 1))


def nets():
    torch.manual_seed(0)
    yield "bypass", Around(), torch.randn(7, 6), "middle"
    yield "mixes", Mixes(), torch.randn(7, 6), "middle"
    yield "a wide layer", nn.Sequential(nn.Linear(1030, 1100), nn.ReLU(), nn.Linear(1100, 3)), torch.randn(3, 1030), "1"
    yield "a narrow input", nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)), torch.randn(5, 6), "1"
    yield "digits", load_digits_net(), torch.randn(4, 1, 32, 32), "features.18"
    yield "tokens", nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(24, 9), nn.ReLU(), nn.Linear(9, 3)), \
        torch.randint(11, (5, 4)), "3"


CASES = {name: (net.eval(), *case) for name, net, *case in nets()}


def assert_alike(a, b):
    assert len(a) == len(b)
    assert a.target_label == b.target_label
    assert a.layer == b.layer
    for name in ("S", "alpha", "psi", "projections"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one - other).abs().max() <= 1e-4 * other.abs().max(), name
    for name in ("gradient", "bypass_gradient", "x"):
        one, other = getattr(a, name), getattr(b, name)
        assert one.shape == other.shape, name
        assert (one - other).norm() <= 1e-5 * (1e-6 + other.norm()), name
    size = max(abs(b.output), abs(b.bias), 1e-3)
    for name in ("output", "bias", "bypass", "remainder"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-4 * size), name
    assert a.bias_contributions == pytest.approx(b.bias_contributions, abs=1e-4 * size)
    assert a.right_vectors.shape == b.right_vectors.shape
    assert a.left_vectors.shape == b.left_vectors.shape
    products = torch.einsum("k...,k...->k", a.right_vectors.double(), b.right_vectors.double())
    apart = b.S[:-1] - b.S[1:] > 1e-2 * b.S[0]
    alone = torch.cat([apart[:1], apart[:-1] & apart[1:], apart[-1:]]) if len(apart) else torch.ones(len(b)).bool()
    assert (products[alone] - 1).abs().max() <= 1e-3 if alone.any() else True
    assert a.completeness < 1e-5
    assert a.exactness < 1e-5
    assert a.agreement < 1e-4


@pytest.mark.parametrize("name, rank", [(name, rank) for name in CASES for rank in (None, 3)
                                        if (name, rank) != ("a wide layer", None)])
def test_the_same_as_one_at_a_time(name, rank):
    net, X, layer = CASES[name]
    found = list(specxai.explain_many(net, X, layer, rank=rank, batch_size=4))
    assert len(found) == len(X)
    together = name not in ("mixes", "a wide layer")
    for i, e in enumerate(found):
        assert_alike(e, specxai.explain(net, X[i:i + 1], layer, rank=rank))
        assert e.local is None
        assert ("batch" in e.settings["svd"]) == (together and len(X) > 1)


def test_each_input_has_its_own_target_and_residuals_hold():
    net, X, layer = CASES["bypass"]
    labels = torch.tensor([0, 3, 1, 2, 0, 1, 3])
    found = list(specxai.explain_many(net, X, layer, targets=labels, rank=None))
    assert [e.target_label for e in found] == [f"output[{label}]" for label in labels]
    for i, e in enumerate(found):
        R = specxai.linearize(net, X[i:i + 1]).split(layer).right.to_dense().double()
        true = torch.linalg.svdvals(R)
        assert ((e.S - true[:len(e)]).abs() <= e.residuals).all()
        rest = R - torch.einsum("km,k,kn->mn", e.left_vectors.double(), e.S, e.right_vectors.double())
        assert float(rest.norm()) <= e.error


def test_what_the_model_gets_by_name():
    net, X, layer = CASES["bypass"]
    shift = {"shift": torch.tensor([[0.5]])}
    for i, e in enumerate(specxai.explain_many(net, X[:3], layer, rank=None, kwargs=shift)):
        assert_alike(e, specxai.explain(net, X[i:i + 1], layer, rank=None, kwargs=shift))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(5, 7), nn.Linear(7, 2)

    def forward(self, x, mask=None):
        return self.last(torch.relu(self.inner(x * mask)))


@pytest.mark.parametrize("devices", [None, ["cpu", "cpu"]])
def test_what_each_input_gets_by_name(devices):
    torch.manual_seed(0)
    net, X, masks = Masked().eval(), torch.randn(5, 5), torch.rand(5, 5).gt(0.4).float()
    found = list(specxai.explain_many(net, X, "inner", each={"mask": masks}, batch_size=2, devices=devices))
    for i, e in enumerate(found):
        assert_alike(e, specxai.explain(net, X[i:i + 1], "inner", kwargs={"mask": masks[i:i + 1]}))


def test_processes_give_the_same():
    net, X, layer = load_digits_net(), torch.randn(6, 1, 32, 32), "classifier.1"
    here = list(specxai.explain_many(net, X, layer, batch_size=2))
    there = list(specxai.explain_many(net, X, layer, batch_size=2, devices=["cpu", "cpu"]))
    for a, b in zip(there, here, strict=True):
        assert_alike(a, b)


def test_triplets_that_are_not_the_references_are_refused(monkeypatch):
    net, X, layer = CASES["bypass"]
    monkeypatch.setattr(module, "dense_svds", lambda R, *given: dense_svds(R.roll(1, 0), *given))
    with pytest.raises(SpecXAIError, match="not those of the reference"):
        list(specxai.explain_many(net, X, layer))


def test_batches_are_as_large_as_their_memory_allows(monkeypatch):
    net, X, layer = CASES["a narrow input"]
    monkeypatch.setattr(module, "MATRICES", 3 * 6 * 40 * 4)
    sizes = [e.settings["svd"].get("batch") for e in specxai.explain_many(net, X, layer)]
    assert sizes == [3, 3, 3, 2, 2]


@pytest.mark.parametrize("given, error, says", [
    ({"inputs": torch.zeros(3)}, ValueError, "N inputs of one shape"),
    ({"inputs": [torch.zeros(1, 6), torch.zeros(1, 5)]}, ValueError, "differ in shape"),
    ({"inputs": [torch.zeros(6)]}, TypeError, r"list of tensors \(1"),
    ({"inputs": torch.tensor([[0.0] * 6, [float("nan")] * 6])}, ValueError, "input 1 holds"),
    ({"target": 1, "targets": [0, 1]}, TypeError, "not both"),
    ({"targets": [0]}, ValueError, "1 entries for 2 inputs"),
    ({"target": 9}, IndexError, "out of range"),
    ({"batch_size": 0}, ValueError, "positive integer"),
    ({"devices": "cpu"}, ValueError, "give a list"),
    ({"devices": ["cuda:77"]}, ValueError, "there is no cuda:77"),
    ({"each": {"shift": torch.zeros(3)}}, ValueError, "one entry for each of 2 inputs; got"),
    ({"each": {"shift": torch.zeros(2)}, "kwargs": {"shift": 1.0}}, ValueError, "give it once"),
    ({"layer": "nowhere"}, LayerError, "no layer"),
    ({"layer": None}, TypeError, "needs layer="),
    ({"model": 3}, TypeError, "nn.Module"),
    ({"rank": 0}, ValueError, "out of range"),
])
def test_what_is_wrong_is_said_before_the_first(given, error, says):
    given = {"model": CASES["bypass"][0], "inputs": torch.zeros(2, 6), "layer": "middle", **given}
    with pytest.raises(error, match=says):
        specxai.explain_many(**given)


def test_no_inputs_and_results_that_travel():
    net, X, layer = CASES["bypass"]
    assert list(specxai.explain_many(net, X[:0], layer)) == []
    e = next(specxai.explain_many(net, X, layer))
    assert_alike(pickle.loads(pickle.dumps(e)), e)
