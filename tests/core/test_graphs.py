"""Passes that are captured and replayed, with a stand-in for CUDA's graphs that runs them again on the same memory."""

from __future__ import annotations

import pytest
import torch

import specxai
from random_nets import random_net
from specxai.backends.cuda import graphs
from specxai.backends.cuda.graphs import Graphs
from specxai.backends.products import PlannedBackend
from specxai.backends.torch import TorchEngine

CPU = torch.device("cpu")


class Again:
    """Does what was captured once more: reads the block that it was captured with, writes the result that it gave."""

    def __init__(self, made, block, result) -> None:
        self.made, self.block, self.result, self.replayed = made, block, result, 0

    def replay(self) -> None:
        self.replayed += 1
        self.result.copy_(self.made(self.block))


def captured(into: list):
    def capture(made, block):
        result = made(block)
        into.append(Again(made, block, result))
        return into[-1], result

    return capture


class Replaying(TorchEngine):
    """The torch engine with captured passes."""

    def __init__(self, dtype, capture) -> None:
        super().__init__(dtype, CPU)
        self.made = Graphs(CPU, capture)

    def graphs(self) -> Graphs:
        return self.made


def test_replayed_products_are_the_products(dtype):
    net, x = random_net(3, dtype)
    graph = specxai.linearize(net, x, backend="torch").graph
    found: list[Again] = []
    ends = [graph.input], [max(graph.nodes)], []
    plain = PlannedBackend(graph, TorchEngine(dtype, CPU)).products(*ends)
    ours = PlannedBackend(graph, Replaying(dtype, captured(found))).products(*ends)
    n, m = x.numel(), plain.matmat(torch.zeros(x.numel(), 1, dtype=dtype)).shape[0]
    kept = []
    for _ in range(4):
        X, Y = torch.randn(n, 5, dtype=dtype), torch.randn(m, 3, dtype=dtype)
        kept += [(ours.matmat(X), plain.matmat(X)), (ours.rmatmat(Y), plain.rmatmat(Y))]
    assert [again.replayed for again in found] == [3, 3], "the first pass of a kind runs as it is"
    assert all(torch.equal(got, want) for got, want in kept), "a later pass wrote an earlier one's result"
    assert ours.product_bytes(8) > plain.product_bytes(8)


def test_a_captured_pass_has_an_arena_of_its_own():
    net, x = random_net(3, torch.float32)
    graph = specxai.linearize(net, x, backend="torch").graph
    seen = []

    def capture(made, block):
        seen.append((len(backend._arenas.idle), engine.made.capturing))
        result = made(block)
        seen.append((len(backend._arenas.idle), engine.made.capturing))
        return Again(made, block, result), result

    engine = Replaying(torch.float32, capture)
    backend = PlannedBackend(graph, engine)
    ours = backend.products([graph.input], [max(graph.nodes)], [])
    X = torch.randn(x.numel(), 4)
    ours.matmat(X)
    (arena,) = backend._arenas.idle
    arena.fill_(7)
    before = arena.clone()
    ours._graphs._new(("matmat", 4, False), lambda block: ours._forward(block, False, {}), X)
    assert torch.equal(arena, before), "the shared arena was written"
    assert seen == [(1, True), (1, True)]
    assert not engine.made.capturing


def test_the_first_pass_finds_its_block_as_the_captured_one_lies():
    """Kernels are compiled for the addresses that they get."""
    met: list[int] = []

    def run(block):
        met.append(block.data_ptr() % graphs.ALIGNED)
        return 2 * block

    made = Graphs(CPU, captured([]))
    shifted = torch.arange(13.0)[1:].view(4, 3)
    assert shifted.data_ptr() % graphs.ALIGNED
    for _ in range(3):
        assert torch.equal(made.run("odd", run, shifted), 2 * shifted)
    assert met == [0, 0, 0, 0]


def test_the_oldest_goes():
    found: list[Again] = []
    made = Graphs(CPU, captured(found))
    for width in range(1, graphs.KEPT + 2):
        for _ in range(2):
            assert torch.equal(made.run(width, lambda X: 2 * X, torch.ones(1, width)), torch.full((1, width), 2.0))
    assert len(made._kept) == graphs.KEPT
    made.run(2, lambda X: 2 * X, torch.ones(1, 2))
    made.run(1, lambda X: 2 * X, torch.ones(1, 1))  # gone, and captured again in place of 3, the oldest
    assert set(made._kept) == {4, 5, 2, 1}
    assert len(found) == graphs.KEPT + 2


def test_a_pass_that_cannot_be_captured_says_so_once():
    def refuse(made, block):
        raise RuntimeError("operation not permitted when stream is capturing")

    made = Graphs(CPU, refuse)
    made.run("a", torch.neg, torch.ones(2, 1))
    with pytest.warns(RuntimeWarning, match="launch by launch: operation not permitted"):
        assert torch.equal(made.run("a", torch.neg, torch.ones(2, 1)), -torch.ones(2, 1))
    assert torch.equal(made.run("a", torch.neg, torch.ones(2, 1)), -torch.ones(2, 1))
