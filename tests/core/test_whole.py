"""Adjoints through joined nodes of whole values are those through single ones: decoders of every kind, random nets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import specxai
from decoders import RMS, D, Decoder, T
from random_nets import random_net
from specxai.backends.reference import WholeValues, pull
from specxai.backends.whole import joined
from specxai.backends.whole.attention import attentions
from specxai.backends.whole.middles import middles
from specxai.backends.whole.norms import with_norms
from specxai.backends.whole.products import JoinedProducts
from specxai.backends.whole.routes import routes, with_routes
from specxai.backends.whole.split import product, split
from specxai.graph import Graph


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def graph_of(net: nn.Module, gates="tangent", shape: tuple[int, ...] = (1, T, D)) -> Graph:
    torch.manual_seed(1)
    net = net.double().eval().requires_grad_(False)
    return specxai.linearize(net, torch.randn(shape, dtype=torch.float64), gates, backend="reference").graph


def cotangents(graph: Graph, target: int, columns: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.randn(columns, *graph.shapes[target], generator=g, dtype=torch.float64).to(graph.dtype)


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("gates", ["tangent", "frozen", {"base": "tangent", "softmax": "held"},
                                   {"base": "tangent", "norm": "held"}])
@pytest.mark.parametrize(("norm", "middle", "shared", "fused"), [
    ("weight first", "gated", 3, False), ("weight last", "chunked", 1, True), ("one more", "tanh by hand", 3, True),
    ("layer", "gelu", 1, False), ("own", "relu", 1, True)])
def test_a_decoder(norm, middle, shared, fused, gates):
    torch.manual_seed(0)
    net = nn.Sequential(*(Decoder(norm, middle, shared, fused) for _ in range(2)))
    graph = graph_of(net, gates)
    target = max(graph.nodes)
    y, path = cotangents(graph, target), graph.between([graph.input], [target])
    want, = pull(graph, {target: y}, [graph.input])
    whole = joined(graph, [graph.input, target])
    found = whole.middles(1000, 1 << 30)
    part, size = whole.between(graph.input, target, found)
    assert size == 8 * (2 * T * D * D + 40 * D * T)
    assert relative(pull(part, {target: y}, [graph.input])[0], want) < 1e-13
    moved = with_routes(part, routes(part, [graph.input, target]))
    assert relative(pull(moved, {target: y}, [graph.input])[0], want) < 1e-13
    assert len(moved.between([graph.input], [target])) < 0.6 * len(path)
    if gates == "tangent":
        assert len(attentions(graph)) == 2
        if norm not in ("layer", "own"):
            assert len(with_norms(graph).between([graph.input], [target])) <= len(path) - 4 * 4
    rough = joined(graph, [graph.input, target], torch.bfloat16)
    part, size = rough.between(graph.input, target, found)
    assert size == 2 * (2 * T * D * D + 40 * D * T)
    for one in (part, with_routes(part, routes(part, [graph.input, target])), rough.graph):
        assert 1e-6 < relative(pull(one, {target: y}, [graph.input])[0], want) < 1e-2


@pytest.mark.parametrize("seed", range(40))
def test_random_nets(seed):
    """Whatever is joined in them, or nothing."""
    net, x = random_net(seed, torch.float64)
    graph = specxai.linearize(net, x, backend="reference").graph
    target = max(graph.nodes)
    y = cotangents(graph, target)
    want, = pull(graph, {target: y}, [graph.input])
    whole = joined(graph, [graph.input, target])
    part, _ = whole.between(graph.input, target, whole.middles(1 << 20, 1 << 30))
    for one in (part, with_routes(part, routes(part, [graph.input, target]))):
        got, = pull(one, {target: y}, [graph.input])
        assert float((got - want).norm()) <= 1e-12 * float(want.norm())


class Leaks(nn.Module):
    """Something else reads what lies inside."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.norm = what, RMS("weight first")
        self.up, self.down, self.side = nn.Linear(D, 40), nn.Linear(40, D), nn.Linear(40, D)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        m = F.gelu(self.up(h))
        y = self.down(m)
        if self.what == "middle":
            return x + y + self.side(m.sin())
        if self.what == "scores":
            scores = torch.softmax(h @ h.mT, -1)
            return x + scores @ h + scores.sum(-1, keepdim=True)
        if self.what == "mixed":  # over positions inside of the middle
            return x + self.down(m + m.mean(1, keepdim=True))
        if self.what == "norm over neighbours":  # a number a group all the same
            squares = F.avg_pool2d(y.pow(2).mean(-1, keepdim=True), (3, 1), 1, (1, 0))
            return x + y * torch.rsqrt(squares + 1e-6)
        if self.what in ("rows of scores", "rows of a pattern"):  # one product of all heads' rows, one for each head
            q, k, v = h.reshape(1, T, 3, 4).transpose(1, 2)[0], y[0, :, :4], y[0, :, 4:8]
            rows, each = q.reshape(3 * T, 4), k.expand(3, T, 4)
            if self.what == "rows of scores":
                return torch.softmax((rows @ k.mT).view(3, T, T), -1) @ v.expand(3, T, 4).clone()
            return torch.softmax(q @ each.mT, -1).reshape(3 * T, T) @ v
        return x + y * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-6)  # over positions


@pytest.mark.parametrize("what", ["middle", "scores", "mixed", "norm over positions", "norm over neighbours",
                                  "rows of scores", "rows of a pattern"])
def test_what_others_read_or_positions_share_is_not_joined(what):
    torch.manual_seed(0)
    graph = graph_of(Leaks(what))
    target = max(graph.nodes)
    y = cotangents(graph, target)
    want, = pull(graph, {target: y}, [graph.input])
    whole = joined(graph, [graph.input, target])
    part, _ = whole.between(graph.input, target, found := whole.middles(1000, 1 << 30))
    assert relative(pull(part, {target: y}, [graph.input])[0], want) < 1e-13
    assert len(found) == (0 if what in ("middle", "scores", "mixed") else 1)
    if what in ("scores", "rows of scores", "rows of a pattern"):
        assert not attentions(graph)


def test_kept_steps_are_in_nothing():
    torch.manual_seed(0)
    graph = graph_of(Decoder("weight first", "gated", 3, False))
    target = max(graph.nodes)
    y = cotangents(graph, target)
    wanted: dict[int, list] = {step: [] for step in graph.nodes}
    pull(graph, {target: y}, [graph.input], taps=wanted)
    for step in graph.between([graph.input], [target])[:-1]:
        whole = joined(graph, [graph.input, step, target])
        part, _ = whole.between(graph.input, target, whole.middles(1000, 1 << 30))
        for one in (part, with_routes(part, routes(part, [graph.input, step, target]))):
            tapped: dict[int, list] = {step: []}
            pull(one, {target: y}, [graph.input], taps=tapped)
            assert relative(tapped[step][0], wanted[step][0]) < 1e-13, step


def test_matrices_that_do_not_pay_are_not_made():
    graph = graph_of(Decoder("layer", "gelu", 1, False))
    assert [len(middles(graph, columns)) for columns in (1, 4, 1000)] == [0, 0, 1]
    assert not middles(graph, 1000, size=T * D * D - 1)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_products_of_split_factors_are_float32s(weights):
    x, W = torch.randn(40, 300), torch.randn(300, 50).to(weights)
    want = x.double() @ W.double()
    error = float((product(x, split(W)) - want).norm() / want.norm())
    assert error < 1.2 * float(((x @ W.float()) - want).norm() / want.norm()) + 1e-8


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_split_weights_in_a_decoder(weights):
    torch.manual_seed(0)
    net = Decoder("weight first", "gated", 3, False).to(weights).float().eval().requires_grad_(False)
    graph = specxai.linearize(net, torch.randn(1, T, D), backend="reference").graph
    ends = [[graph.input], [max(graph.nodes)], []]
    plain, ours = WholeValues(graph, *ends, None, None), JoinedProducts(graph, *ends, None, None, splits=True)
    X, Y = torch.randn(T * D, 3), torch.randn(T * D, 3)
    for name, block in (("matmat", X), ("rmatmat", Y)):
        got, want = getattr(ours, name)(block), getattr(plain, name)(block)
        assert 0 < relative(got, want) < 2e-6
