"""Models that mix the inputs of a batch in ways that no derivative shows are explained one input at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.affine import alone
from specxai.zoo import load_digits_net


@pytest.fixture
def solver():
    """The real one: overrides the dense stand-in."""


class Net(nn.Module):
    """`before` is what is done to the input, `after` to the output y of the two layers."""

    def __init__(self, before=None, after=None) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.before, self.after = before, after

    def forward(self, x):
        h = x if self.before is None else self.before(x)
        y = self.last(torch.relu(self.inner(h)))
        return y if self.after is None else self.after(x, y)


class Scaled(nn.Module):
    """Its middle is scaled by the batch's largest entry, and its output is scaled back: only the layer tells."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False)

    def forward(self, x):
        scale = x.detach().abs().max()
        return self.last(torch.relu(self.inner(x / scale))) * scale


def among_neighbours(x):
    """Each input is held against the next one."""
    return x * (1 + 0.01 * (x.detach().roll(1, 0).sum(1, keepdim=True) > x.detach().sum(1, keepdim=True)))


def first_two(x):
    if len(x) < 2:
        return x
    larger = x.detach()[:2].sum(1).argmax()
    return torch.where((torch.arange(len(x)) == 1)[:, None] & (larger == 0), 1.01 * x, x)


def by_a_share(x):
    """The same numbers, with a gradient that the batch's size scales."""
    return x / len(x) + x.detach() * (1 - 1 / len(x))


def capacity(x, y):
    """As in a mixture of experts: each output serves so many inputs of a batch, the first to come."""
    taken = nn.functional.one_hot(y.detach().argmax(1), 3)
    return y * ((taken.cumsum(0) * taken).sum(1, keepdim=True) <= 2)


def in_range(x):
    return x / 4 if x.detach().abs().max() > 2.5 else x


def in_range_by_numpy(x):
    return x / 4 if abs(x.detach().numpy()).max() > 2.5 else x


MIXED = {
    "its place": Net(lambda x: x * (1 + 0.01 * torch.arange(len(x))[:, None])),
    "its place among many": Net(lambda x: x * (1 + 0.01 * (torch.arange(len(x)) == 5)[:, None])),
    "the size of the batch": Net(after=lambda x, y: y / len(x)),
    "one or several": Net(after=lambda x, y: y * (1.0 if len(x) == 1 else 1.01)),
    "one or several, where a rare gate opens": Net(
        after=lambda x, y: torch.where((x.detach()[:, :1] > 1.9) & (len(x) > 1), 1.01 * y, y)),
    "the mean's sign": Net(after=lambda x, y: y * (x.detach().mean() > 0)),
    "the largest entry of all": Net(after=lambda x, y: torch.where(x.detach().max() > 2.5, 1.01 * y, y)),
    "the input before": Net(among_neighbours),
    "the first two": Net(first_two),
    "who comes first": Net(after=capacity),
    "the order": Net(after=lambda x, y: y + 0.01 * x.detach()[:, 0].argsort().argsort()[:, None]),
    "a scale that is taken back": Scaled(),
    "a scale of the gradient alone": Net(by_a_share),
    "a scale of the last gradient alone": Net(after=lambda x, y: y * (y / y.detach()) ** (len(x) - 1)),
    "a decision of the code": Net(in_range),
    "a decision outside of torch": Net(in_range_by_numpy),
}


def inputs() -> torch.Tensor:
    """Most are positive and small; a few of either sign, or large."""
    X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).abs().clamp_max(1.0)
    X[3, 0], X[7] = 2.0, -0.1 * X[7]
    X[9, 2] = 3.0
    return X


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("batch_size", [6, 12])
def test_the_mixed_are_explained_alone(name, batch_size):
    torch.manual_seed(0)
    net, X = MIXED[name].eval(), inputs()
    found = list(specxai.explain_many(net, X, "inner", rank=None, target=1, batch_size=batch_size))
    for i, e in enumerate(found):
        want = specxai.explain(net, X[i:i + 1], "inner", rank=None, target=1)
        assert len(e) == len(want)
        for field in ("S", "alpha"):
            one, other = getattr(e, field), getattr(want, field)
            assert (one - other).abs().max() <= 1e-4 * other.abs().max() + 1e-9, (i, field)
        assert e.output == pytest.approx(want.output, rel=1e-5)
    assert any("batch" not in e.settings["svd"] for e in found)


class Attends(nn.Module):
    """Each has its own mask, all share a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(11, 8), nn.Linear(8, 3)
        self.inner = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids, mask=None, shift=0.0):
        h = self.inner(self.embed(ids) + shift, src_key_padding_mask=mask)
        return self.last(h.mean(1))


class Watched(nn.Module):
    """Counts the runs of a model with one input."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.runs = net, []

    def forward(self, *args, **kwargs):
        self.runs.append(len(args[0]))
        return self.net(*args, **kwargs)


def apart():
    torch.manual_seed(0)
    mask = torch.zeros(12, 5).bool()
    mask[::2, 3:] = True
    ids = torch.randint(11, (12, 5))
    yield "digits", load_digits_net(), torch.rand(12, 1, 32, 32), "classifier.1", {}
    yield "tokens", Attends(), ids, "inner", {"each": {"mask": mask}, "kwargs": {"shift": torch.ones(1, 1, 8)}}
    yield "norms", nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.AdaptiveAvgPool2d(2),
                                 nn.Flatten(), nn.Linear(16, 9), nn.LayerNorm(9), nn.GELU()), \
        torch.randn(12, 2, 7, 7), "5", {}
    yield "an op without a rule of vmap's", Net(after=lambda x, y: y + torch.renorm(y.detach(), 2, 0, 0.1)), \
        torch.randn(12, 6), "inner", {}


@pytest.mark.parametrize("net, X, layer, given", [pytest.param(*case, id=name) for name, *case in apart()])
def test_the_model_runs_with_one_input_as_often_for_any_batch(net, X, layer, given, capfd):
    def runs(count: int) -> int:
        watched = Watched(net).eval()
        own = {"each": {name: all_of[:count] for name, all_of in given["each"].items()}} if "each" in given else {}
        found = list(specxai.explain_many(watched, X[:count], f"net.{layer}", rank=3, **{**given, **own}))
        assert all(e.settings["svd"]["batch"] == count for e in found)
        return watched.runs.count(1)

    assert runs(12) == runs(4)
    assert "batching rule" not in capfd.readouterr().err


def test_what_vmap_does_not_run_is_run_by_the_model(monkeypatch):
    torch.manual_seed(0)
    net, X = Watched(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))).eval(), torch.randn(5, 6)

    def runs() -> int:
        net.runs.clear()
        assert all(e.settings["svd"]["batch"] == 5 for e in specxai.explain_many(net, X, "net.1", rank=None))
        return net.runs.count(1)

    runs()  # which records it
    often = runs()
    monkeypatch.setattr(alone.torch, "vmap", lambda *given, **how: 1 / 0)
    assert runs() == often - 1 + len(X)


class Changes(Net):
    """Its code remembers that it saw a batch, and then makes something else of one input: no recording sees that."""

    seen = False

    def forward(self, x):
        y = super().forward(x) * (1.1 if self.seen and len(x) == 1 else 1.0)
        self.seen = self.seen or len(x) > 1
        return y


def test_one_input_that_is_drawn_is_given_to_the_model_itself():
    torch.manual_seed(0)
    net, X = Changes().eval(), torch.randn(6, 6)
    found = list(specxai.explain_many(net, X, "inner", rank=None))
    assert net.seen
    for i, e in enumerate(found):
        assert "batch" not in e.settings["svd"]
        assert e.output == pytest.approx(specxai.explain(net, X[i:i + 1], "inner", rank=None).output, rel=1e-5)
