"""Wide middles as one matrix a position: where they are found, that products stay the same, and when they are made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import specxai
from specxai.backends import make
from specxai.backends.composed import Standing
from specxai.backends.torch import TorchEngine
from specxai.plan import Place, Planner, chains

TOKENS, WIDTH, HIDDEN = 5, 48, 192


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Nets of a test's size are worth it too."""
    monkeypatch.setattr(chains, "LEAST", 1)


class Block(nn.Module):
    """A feed-forward block of one kind, between a mixing of positions and a further layer."""

    def __init__(self, kind: str, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kind = kind
        self.mix, self.norm = nn.Linear(TOKENS, TOKENS), nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * HIDDEN if kind == "split" else HIDDEN)
        self.gate, self.down, self.last = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.mix(x.mT).mT
        z = self.norm(x)
        if self.kind in ("gelu", "relu", "silu"):
            hidden = getattr(F, self.kind)(self.up(z))
        elif self.kind == "gated":
            hidden = F.silu(self.gate(z)) * self.up(z)
        elif self.kind == "split":
            left, right = self.up(z).chunk(2, -1)
            hidden = F.gelu(left) * right
        elif self.kind == "linear":
            hidden = self.up(z)
        elif self.kind == "read twice":
            hidden = F.gelu(self.up(z))
            return self.down(hidden) + hidden[..., :WIDTH]
        elif self.kind == "other positions":
            hidden = F.gelu(self.up(z)).flip(1)
        elif self.kind == "other inputs":
            hidden = F.silu(self.gate(z)) * self.up(x)
        return self.last(x + self.down(hidden))


FOUND = {"gelu": 1, "relu": 1, "silu": 1, "gated": 1, "split": 1, "linear": 1, "read twice": 0, "other positions": 0,
         "other inputs": 0}


def graph_of(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0):
    net = Block(kind, seed).eval().to(dtype)
    return specxai.linearize(net, torch.randn(1, TOKENS, WIDTH, dtype=dtype)).graph


def plan_of(graph, **kwargs):
    return Planner(graph).plan([graph.input], [max(graph.nodes)], [], **kwargs)


@pytest.mark.parametrize("kind", FOUND)
def test_a_middle_is_found_where_one_matrix_can_stand_for_it(kind):
    found = plan_of(graph_of(kind)).chains
    assert len(found) == FOUND[kind]
    for chain in found:
        assert chain.composed == TOKENS * WIDTH * WIDTH or kind == "relu"
        assert chain.direct > chain.composed


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [kind for kind, count in FOUND.items() if count])
def test_products_by_matrices_are_the_reference_s(kind, seed, engine):
    graph = graph_of(kind, seed=seed)
    want = make("reference", graph).products([graph.input], [max(graph.nodes)], [])
    ours = make(engine, graph).products([graph.input], [max(graph.nodes)], [])
    ours.expect(10**6)
    assert ours.flops_run < ours.flops
    for columns in (1, 16, 33):
        X = torch.randn(TOKENS * WIDTH, columns, dtype=graph.dtype)
        assert ours._ways(columns, False) or columns == 1
        torch.testing.assert_close(ours.matmat(X), want.matmat(X), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(ours.rmatmat(X), want.rmatmat(X), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["gelu", "relu", "gated"])
def test_matrices_as_the_adjoint_reads_them(kind):
    plan = plan_of(graph_of(kind))
    (chain,) = plan.chains
    wide = chain.wide(plan.stages)
    one, other = (wide.layer(torch.device("cpu"), transposed) for transposed in (False, True))
    torch.testing.assert_close(one.sites.weight, other.sites.weight, rtol=1e-13, atol=1e-14)
    assert other.sites.weight[..., 0].mT.is_contiguous() == (kind != "gated")
    assert one.sites.weight.shape == (TOKENS, WIDTH, WIDTH, 1)


class Stack(nn.Module):
    """Random feed-forward blocks: with norms and residual adds or without, gated or not, narrow at one end or not."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kinds = [tuple(bool(bit) for bit in torch.randint(2, (5,))) for _ in range(3)]
        self.norms, self.ups, self.gates, self.downs, self.mixes = (nn.ModuleList() for _ in range(5))
        for _ in self.kinds:
            self.norms.append(nn.LayerNorm(WIDTH))
            self.ups.append(nn.Linear(WIDTH, HIDDEN))
            self.gates.append(nn.Linear(WIDTH, HIDDEN))
            self.downs.append(nn.Linear(HIDDEN, WIDTH))
            self.mixes.append(nn.Linear(TOKENS, TOKENS))

    def forward(self, x):
        for (norm, residual, gated, mixed, across), *layers in zip(
                self.kinds, self.norms, self.ups, self.gates, self.downs, self.mixes, strict=True):
            normed, up, gate, down, mix = layers
            z = mix(x.mT).mT if across else x  # then the stream's positions are others than the block's
            z = normed(z) if norm else z
            hidden = up(z) * F.silu(gate(z)) if gated else F.gelu(up(z))
            x = x + down(hidden) if residual else down(hidden)
            if mixed:
                x = x + mix(x.mT).mT
        return x


@pytest.mark.parametrize("gates", ["tangent", "frozen"])
@pytest.mark.parametrize("seed", range(25))
def test_random_stacks(seed, gates):
    """Layers that read rows which they write, or which are free for others before the chain has run."""
    net = Stack(seed).eval().double()
    graph = specxai.linearize(net, torch.randn(1, TOKENS, WIDTH, dtype=torch.float64), gates=gates).graph
    some = torch.arange(2 * WIDTH, 4 * WIDTH)
    for columns, rows in ((None, None), (some, None), (None, some)):
        want, *ours = (make(name, graph).products([graph.input], [max(graph.nodes)], [], columns, rows)
                       for name in ("reference", "native", "torch"))
        X, Y = (torch.randn(TOKENS * WIDTH if chosen is None else len(chosen), 16, dtype=torch.float64)
                for chosen in (columns, rows))
        for products in ours:
            products.expect(10**6)
            assert products._ways(16, False)
            torch.testing.assert_close(products.matmat(X), want.matmat(X), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(products.rmatmat(Y), want.rmatmat(Y), rtol=1e-10, atol=1e-10)


def test_half_of_the_positions_and_units():
    """Sources and targets of a few units: dead rows at both ends of a middle."""
    graph = graph_of("gated")
    columns, rows = torch.arange(0, TOKENS * WIDTH, 3), torch.arange(WIDTH, 3 * WIDTH, 2)
    want, ours = (make(name, graph).products([graph.input], [max(graph.nodes)], [], columns, rows)
                  for name in ("reference", "native"))
    ours.expect(10**6)
    X, Y = torch.randn(len(columns), 16, dtype=graph.dtype), torch.randn(len(rows), 16, dtype=graph.dtype)
    assert ours._ways(16, False)
    torch.testing.assert_close(ours.matmat(X), want.matmat(X), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours.rmatmat(Y), want.rmatmat(Y), rtol=1e-11, atol=1e-11)


def test_a_value_whose_cotangents_are_asked_for_keeps_its_rows():
    graph = graph_of("gelu")
    inputs = [node.terms[0].input for node in graph.nodes.values() if node.fully_connected is not None]
    hidden = next(step for step in inputs if graph.shapes[step][-1] == HIDDEN)
    assert plan_of(graph).chains
    assert not plan_of(graph, taps=[hidden]).chains
    mixed = min(step for step, node in graph.nodes.items() if node.fully_connected is not None)
    tapped = make("native", graph).products([graph.input], [max(graph.nodes)], [], taps=[mixed])
    tapped.expect(10**6)
    Y, seen = torch.randn(TOKENS * WIDTH, 16, dtype=graph.dtype), {}
    tapped.rmatmat(Y, passed=lambda step, found: seen.update({step: found.clone()}))
    want = make("reference", graph).products([mixed], [max(graph.nodes)], []).rmatmat(Y)
    direct = make("reference", graph).products([graph.input], [max(graph.nodes)], [], taps=[mixed])
    theirs = {}
    direct.rmatmat(Y, passed=lambda step, found: theirs.update({step: found.clone()}))
    assert want.shape == theirs[mixed].shape
    torch.testing.assert_close(seen[mixed], theirs[mixed], rtol=1e-11, atol=1e-11)


def test_matrices_come_when_so_many_columns_have_paid_for_them():
    graph = graph_of("gelu")
    ours = make("native", graph).products([graph.input], [max(graph.nodes)], [])
    (composed,) = ours._composed
    worth, X = composed.chain.worth, torch.randn(TOKENS * WIDTH, 16, dtype=graph.dtype)
    assert 16 < worth < 160
    for served in range(16, 200, 16):
        ours.matmat(X)
        assert (composed._made is not None) == (served >= worth)


def test_whoever_expects_columns_decides_and_what_was_multiplied_does_not():
    graph = graph_of("gelu")
    ours = make("native", graph).products([graph.input], [max(graph.nodes)], [])
    ours.expect(1)
    X = torch.randn(TOKENS * WIDTH, 16, dtype=graph.dtype)
    products = [ours.matmat(X) for _ in range(20)]
    assert all(torch.equal(product, products[0]) for product in products)
    assert ours._composed[0]._made is None


@pytest.mark.parametrize(("columns", "error"), [(-1, ValueError), (1.5, TypeError), ("many", TypeError),
                                                 (True, TypeError)])
def test_what_is_no_number_of_columns(columns, error):
    J = specxai.linearize(Block("gelu").eval(), torch.randn(1, TOKENS, WIDTH)).jacobian
    with pytest.raises(error, match="columns"):
        J.expect(columns)


def test_two_solves_agree_in_every_bit():
    net, x = Block("gelu").eval(), torch.randn(1, TOKENS, WIDTH)
    J = specxai.linearize(net, x, backend="native").jacobian
    one, other = (specxai.svd(J, 8, seed=3) for _ in range(2))
    assert torch.equal(one.S, other.S)
    assert torch.equal(one.U, other.U)


def test_matrices_are_part_of_the_memory_and_left_out_where_it_is_tight():
    net, x = Block("gelu").eval(), torch.randn(1, TOKENS, WIDTH)
    roomy = specxai.linearize(net, x, backend="native").jacobian
    plan = roomy._products
    needed = plan._matrix_bytes
    assert needed == 3 * 4 * TOKENS * WIDTH * WIDTH
    tight = specxai.linearize(net, x, backend="native", max_memory=4 * needed - 4).jacobian
    assert tight._products._composed == []
    assert tight._products._matrix_bytes == 0
    aside = 4 * plan._composed[0].scratch(16)
    assert plan.product_bytes(16) - tight._products.product_bytes(16) == needed + aside


def test_rough_products_by_matrices():
    """Matrices in few digits where rough columns alone are expected; products in full precision never meet them."""
    graph = graph_of("gelu", torch.float32)
    ours, want = (make(name, graph).products([graph.input], [max(graph.nodes)], []) for name in ("native", "reference"))
    if not ours.has_rough:
        pytest.skip("this processor has no rough products")
    X = torch.randn(TOKENS * WIDTH, 64)
    exact = want.matmat(X)

    def error(rough: bool) -> float:
        return float((ours.matmat(X, rough=rough) - exact).norm() / exact.norm())

    ours.expect(10**6, rough=True)
    assert error(False) < 1e-6
    assert 1e-6 < error(True) < 1e-2
    assert ours._ways(64, True)
    assert not ours._ways(64, False)
    ours.expect(10**6)
    assert ours._ways(64, False)
    assert error(False) < 1e-6
    assert error(True) < 1e-2


def test_rows_that_are_cleared_first_are_set_aside():
    plan = plan_of(graph_of("gelu"))
    layer = plan.chains[0].wide(plan.stages).layer(torch.device("cpu"))
    size = TOKENS * WIDTH
    reads, writes = (torch.arange(start, start + size, dtype=torch.int32)[None] for start in (0, size))
    engine = TorchEngine(torch.float64, torch.device("cpu"))
    for spans in ((), ((5, 9),)):
        forward, back = (Standing(replace(layer, reads=one, writes=other, own=None, place=place), engine)
                         for one, other, place in ((reads, writes, Place(fresh=spans)),
                                                   (writes, reads, Place(zero=spans))))
        for standing, product, way in ((forward, "forward", layer.sites.weight),
                                       (back, "adjoint", layer.sites.weight.transpose(1, 2))):
            arena = torch.randn(2 * size, 3, dtype=torch.float64)
            want = torch.bmm(way[..., 0], arena[:size].clone().view(TOKENS, WIDTH, 3)).flatten(0, 1)
            getattr(standing, product)(arena, arena, 3, None)
            torch.testing.assert_close(arena[size:], want)
            assert bool((arena[5:9] == 0).all()) == bool(spans)
