"""Many inputs explained together are explained as one at a time."""

from __future__ import annotations

import multiprocessing
import pickle
from multiprocessing import connection

import pytest
import torch
from torch import nn

import specxai
from specxai.errors import LayerError, SpecXAIError, StaleError
from specxai.spectral import many as module
from specxai.svd.dense import dense_svds
from specxai.zoo import load_digits_net
from travellers import Dies, Masked, StaysHome


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


@pytest.mark.parametrize("devices", [None, ["cpu", "cpu"]])
def test_what_each_input_gets_by_name(devices):
    torch.manual_seed(0)
    net, X, masks = Masked().eval(), torch.randn(5, 5), torch.rand(5, 5).gt(0.4).float()
    found = list(specxai.explain_many(net, X, "inner", each={"mask": masks}, batch_size=2, devices=devices))
    for i, e in enumerate(found):
        assert_alike(e, specxai.explain(net, X[i:i + 1], "inner", kwargs={"mask": masks[i:i + 1]}))


class Small(nn.Module):
    """Its output is what `of` makes of the input and of the layers' own."""

    def __init__(self, of) -> None:
        super().__init__()
        self.inner, self.last, self.of = nn.Linear(6, 8), nn.Linear(8, 3), of

    def forward(self, x):
        return self.of(self, x, self.last(torch.relu(self.inner(x))))


def only_alone(net, x, y):
    if len(x) > 1:
        raise RuntimeError("one at a time")
    return y


def with_state(net, x, y):
    if len(getattr(net, "state", ())) != len(x):
        net.state = torch.ones(len(x), 1)
    return only_alone(net, x, y * net.state)


ODD = {
    "an output without a batch axis": lambda net, x, y: y.squeeze(),
    "a batch of one in the code": lambda net, x, y: y.reshape(1, 3),
    "an error for several": only_alone,
    "another function of several": lambda net, x, y: y if len(x) == 1 else net.last(torch.relu(x @ net.inner.weight.T)),
    "a scale of the whole batch": lambda net, x, y: y * (x.detach().mean() > 0),
    "what is kept of the last batch": with_state,
    "masked logits": lambda net, x, y: y.masked_fill(torch.tensor([False, True, False]), -torch.inf),
}


def odd_inputs():
    """Of both signs of the mean, which the first batch of four does not show at its ends."""
    X = torch.randn(10, 6, generator=torch.Generator().manual_seed(3)).abs()
    X[2:3], X[5:] = -0.1 * X[2:3], -X[5:]
    X[7] *= -0.1
    return X


@pytest.mark.parametrize("name", ODD)
def test_models_that_are_not_what_they_are_in_a_batch(name):
    torch.manual_seed(0)
    net, X = Small(ODD[name]).eval(), odd_inputs()
    if name == "what is kept of the last batch":
        net(X[:1])  # so that what is kept is there when the first input is linearised
    found = list(specxai.explain_many(net, X, "inner", rank=None, batch_size=4))
    for i, e in enumerate(found):
        assert_alike(e, specxai.explain(net, X[i:i + 1], "inner", rank=None))
        assert ("batch" in e.settings["svd"]) == (name == "masked logits"), i


def test_numbers_whose_squares_are_out_of_range():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    with torch.no_grad():
        net[0].weight.mul_(1e-200)
    X = torch.randn(3, 6, dtype=torch.float64)
    for i, e in enumerate(specxai.explain_many(net, X, "1", rank=None)):
        R = specxai.linearize(net, X[i:i + 1]).split("1").right.to_dense() * 2.0**664
        true = torch.linalg.svdvals(R)[:len(e)]
        assert ((e.S * 2.0**664 - true).abs() <= e.residuals * 2.0**664).all()
        assert e.error > 0


@pytest.mark.parametrize("devices", [None, ["cpu"]])
def test_weights_that_change_on_the_way_are_noticed(devices):
    torch.manual_seed(0)
    net, X = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(40, 6)
    many = specxai.explain_many(net, X, "1", batch_size=4, devices=devices)
    first = next(many)
    assert_alike(first, specxai.explain(net, X[:1], "1"))
    with torch.no_grad():
        net[0].weight.mul_(1.5)
    with pytest.raises(StaleError, match=r"0\.weight"):
        list(many)


def test_processes_end_with_their_generator():
    net, X = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(140, 6)
    many = specxai.explain_many(net, X, "1", batch_size=2, devices=["cpu", "cpu"])
    next(many)
    workers = [child for child in multiprocessing.active_children() if child.name.startswith("SpawnProcess")]
    assert len(workers) == 2
    many.close()
    for worker in workers:
        assert connection.wait([worker.sentinel], 60) == [worker.sentinel]


def test_a_process_that_cannot_read_the_model_says_why():
    with pytest.raises(SpecXAIError, match="cannot take on the work: RuntimeError: only where it was made"):
        list(specxai.explain_many(StaysHome().eval(), torch.randn(4, 5), "inner", devices=["cpu"]))


def test_a_process_that_dies_is_said():
    with pytest.raises(SpecXAIError, match="ended before its work was done"):
        list(specxai.explain_many(Dies().eval(), torch.randn(4, 5), "inner", devices=["cpu", "cpu"]))


@pytest.mark.parametrize("times, size", [(1, None), (2, 2), (3.5, 3)])
def test_batches_keep_to_max_memory(times, size):
    net, X, layer = CASES["a narrow input"]
    needed = specxai.linearize(net, X[:1]).jacobian.product_bytes
    for batch_size in (None, 5):
        found = specxai.explain_many(net, X, layer, max_memory=int(times * needed), batch_size=batch_size)
        assert next(found).settings["svd"].get("batch") == size


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
    ({"targets": 0}, TypeError, "targets=0: give one for each of 2 inputs"),
    ({"layer": 2}, LayerError, "layer=2 is of type int: layers are named by strings"),
    ({"targets": [0, 9]}, IndexError, "out of range"),
    ({"targets": [0, (1, 2, 3)]}, ValueError, "tuple of 1 integers"),
    ({"targets": [0, torch.zeros(4)]}, ValueError, "all zero"),
    ({"method": "best"}, ValueError, "method must be one of"),
    ({"tol": 2.0}, ValueError, "must lie in"),
    ({"seed": -1}, ValueError, "seed must be"),
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
