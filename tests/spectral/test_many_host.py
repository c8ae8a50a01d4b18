"""What the host does for a batch does not grow with its inputs: none has a number read, and hardly an op called."""

from __future__ import annotations

import collections
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import specxai
from specxai.affine.target import resolve_target, resolve_targets
from waits import Waits


@pytest.fixture
def solver():
    """The real one: overrides the dense stand-in."""


class Calls(TorchDispatchMode):
    """Counts the calls within, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


class Around(nn.Module):
    """With a path round the middle; more units than are open, so that every input has its own rank."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 9), nn.Linear(9, 12), nn.Linear(21, 4)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(torch.cat([h, torch.relu(self.middle(h))], 1))


def case():
    torch.manual_seed(0)
    return Around().eval(), torch.randn(48, 6)


TARGETS = {
    "the largest output": lambda count: {},
    "one for all": lambda count: {"target": 2},
    "labels": lambda count: {"targets": torch.arange(count) % 4},
    "weights for all": lambda count: {"target": torch.tensor([1.0, 0.0, -1.0, 0.5])},
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rank", [None, 2])
def test_a_batch_waits_as_often_for_any_number_of_inputs(target, rank):
    net, X = case()

    def waits(count: int) -> list[str]:
        given = TARGETS[target](count)
        list(specxai.explain_many(net, X[:count], "middle", rank=rank, **given))
        with Waits() as waited:
            found = list(specxai.explain_many(net, X[:count], "middle", rank=rank, **given))
        assert all(e.settings["svd"]["batch"] == count for e in found)
        return waited.found

    few, many = (collections.Counter(waits(count)) for count in (6, 48))
    assert few == many


def test_ops_of_a_further_input():
    net, X = case()

    def calls(count: int) -> collections.Counter:
        list(specxai.explain_many(net, X[:count], "middle"))
        with Calls() as called:
            list(specxai.explain_many(net, X[:count], "middle"))
        return called.found

    few, many = calls(8), calls(48)
    grown = {name: (many[name] - few[name]) / 40 for name in many if many[name] > few[name]}
    assert sum(grown.values()) <= 2, grown  # the compiled Gram matrix of the CPU is made for each


def test_ranks_differ_and_each_result_holds_its_own_storage():
    net, X = case()
    found = list(specxai.explain_many(net, X, "middle", rank=None))
    assert len({len(e) for e in found}) > 1
    for e in found:
        for name, value in vars(e).items():
            if isinstance(value, torch.Tensor):
                assert value.is_contiguous(), name
                assert value.untyped_storage().nbytes() == value.nbytes, name
    one = found[0]
    assert len(pickle.dumps(one)) < 20_000
    before = found[1].S.clone()
    one.S.zero_()
    one.settings["svd"]["rank"] = one.bias_contributions["last"] = one.backends["targets"] = None
    assert torch.equal(found[1].S, before)
    assert found[1].backends["targets"]
    assert found[1].bias_contributions["last"] is not None


def test_the_fields_of_a_result_are_those_of_explain():
    net, X = case()
    for e, i in zip(specxai.explain_many(net, X[:5], "middle", tol=0.1), range(5), strict=True):
        want = specxai.explain(net, X[i:i + 1], "middle", tol=0.1)
        for name, value in vars(want).items():
            got = getattr(e, name)
            if isinstance(value, torch.Tensor):
                assert got.dtype == value.dtype, name
                assert got.shape[1:] == value.shape[1:], name
            elif name != "local":
                assert type(got) is type(value), name
        assert list(e.settings) == list(want.settings)
        assert {"norm", "floor", "estimate", "converged", "lambda_1"} <= set(e.settings["svd"])
        assert e.settings["svd"]["lambda_1"] == float(e.S[0])


@pytest.mark.parametrize("targets", [
    [None, None, None], [0, 1, -1], [(1,), None, 2], [torch.tensor([0.5, 0.0, -1.0])] * 3,
    [None, lambda y: int(y.argmin()), [1.0, -1.0, 0.0]],
])
def test_targets_of_a_batch_are_those_of_each(targets):
    output = torch.tensor([[1.0, 5.0, 2.0], [3.0, 3.0, -1.0], [0.0, -2.0, 7.0]])
    weights, labels = resolve_targets(targets, output)
    for i, target in enumerate(targets):
        wanted, label = resolve_target(target, output[i:i + 1])
        assert torch.equal(weights[i], wanted)
        assert labels[i] == label


def test_targets_of_outputs_with_several_axes_or_none():
    grid = torch.arange(24.0).reshape(2, 3, 4)
    assert resolve_targets([None, (1, 2)], grid)[1] == ["output[2, 3]", "output[1, 2]"]
    weights, labels = resolve_targets([None, 0], torch.ones(2))
    assert (weights.tolist(), labels) == ([[1.0], [1.0]], ["output", "output"])


@pytest.mark.parametrize("output, targets, error, says", [
    ([[1.0, 2.0], [float("nan"), 0.0]], [None, None], ValueError, "contains nan"),
    ([[1.0, 2.0], [1.0, 0.0]], [0, 5], IndexError, "out of range"),
    ([[], []], [None, None], ValueError, "no entry"),
    ([[1.0, 2.0], [1.0, 0.0]], [0, torch.zeros(2)], ValueError, "all zero"),
])
def test_what_is_wrong_with_one_of_the_targets(output, targets, error, says):
    with pytest.raises(error, match=says):
        resolve_targets(targets, torch.tensor(output))
