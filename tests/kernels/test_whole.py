"""Blocks of whole values through a decoder by the kernels, in the interpreter, against single nodes in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from decoders import D, Decoder, T, errors_of
from specxai.backends.cuda.backend import CAPTURED, ReplayedProducts
from specxai.backends.cuda.graphs import Graphs
from specxai.backends.products import PlannedProducts
from specxai.backends.whole.products import JoinedProducts
from tolerances import assert_close


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(("norm", "middle", "shared", "fused"), [
    ("weight first", "gated", 3, False), ("weight last", "chunked", 1, True), ("layer", "gelu", 1, False),
    ("own", "relu", 3, False)])
@torch.no_grad()
def test_a_decoder(norm, middle, shared, fused, dtype):
    torch.manual_seed(0)
    net = nn.Sequential(*(Decoder(norm, middle, shared, fused) for _ in range(2))).eval()
    for error in errors_of(net, dtype, "cpu", 5):
        assert error < (2e-6 if dtype is None else 1e-2)
        assert dtype is None or error > 1e-5


@pytest.mark.parametrize("gates", ["tangent", "frozen"])
@torch.no_grad()
def test_a_decoder_is_not_planned(gates):
    """Its units are nearly all live; a net of ReLUs is, whose layers halve."""
    torch.manual_seed(0)
    net = nn.Sequential(*(Decoder("weight first", "gated", 3, False) for _ in range(2))).eval()
    x = torch.randn(1, T, D)
    ours, oracle = (specxai.linearize(net, x, gates, backend=name).jacobian for name in ("cuda", "torch"))
    assert isinstance(ours._products, JoinedProducts)
    X, Y = (torch.randn(side, 3) for side in ours.shape[::-1])
    for product, block in (("matmat", X), ("rmatmat", Y)):
        assert_close(getattr(ours, product)(block), getattr(oracle, product)(block))
    relu = nn.Sequential(nn.Linear(D, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, D)).eval()
    assert type(specxai.linearize(relu, x, backend="cuda").jacobian._products) is PlannedProducts


@torch.no_grad()
def test_small_passes_are_replayed():
    """By a capture that runs the pass again, as a card's would."""
    taken = []

    class Graph:
        def __init__(self, made, block):
            self.made, self.block = made, block

        def replay(self):
            self.result.copy_(self.made(self.block))

    def capture(made, block):
        graph = Graph(made, block)
        graph.result = made(block)
        taken.append(graph)
        return graph, graph.result

    net = nn.Sequential(*(Decoder("own", "gated", 1, False) for _ in range(2))).eval()
    graph = specxai.linearize(net, torch.randn(1, T, D), backend="reference").graph
    ends = [graph.input], [max(graph.nodes)], [], None, None
    plain, ours = JoinedProducts(graph, *ends), ReplayedProducts(
        graph, *ends, graphs=Graphs(torch.device("cpu"), capture))
    for _ in range(3):
        X = torch.randn(T * D, 5)
        assert torch.equal(ours.matmat(X), plain.matmat(X))
        assert torch.equal(ours.rmatmat(X), plain.rmatmat(X))
    assert len(taken) == 2
    assert ours.product_bytes(5) == 2 * plain.product_bytes(5)
    needed = [ours.product_bytes(columns) for columns in range(1, 1 << 16, 997)]
    assert needed == sorted(needed)
    assert needed[-1] > 1.5 * CAPTURED
    seen = []
    ours.rmatmat(torch.randn(T * D, 5), passed=lambda *given: seen.append(given))
    assert len(taken) == 2


def test_what_was_used_is_said():
    net, x = nn.Sequential(Decoder("own", "gated", 1, False)).eval(), torch.randn(1, T, D)
    local = specxai.linearize(net, x, backend="cuda")
    assert "backend cuda, products in float32, through whole values\n" in local.report()
    relu = nn.Sequential(nn.Linear(D, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, D)).eval()
    assert "backend cuda, products in tf32x3, sought in bf16x3\n" in specxai.linearize(relu, x, backend="cuda").report()
