"""Attention, norms and gated products as stages: right on every engine, and live only where tokens are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import specxai
from specxai import native
from specxai.backends import make
from specxai.plan import Gather, LowRank, Planner, Sum
from tolerances import assert_close

ENGINES = ("torch", *(["native"] if native.available()[0] else []))
TOKENS, WIDTH, HEADS = 6, 8, 4


class Block(nn.Module):
    """Pre-norm attention and a gated feed-forward layer; `mask` (tokens, tokens) bool, `groups` heads of keys."""

    def __init__(self, mask: Tensor | None, groups: int = HEADS) -> None:
        super().__init__()
        self.mask, self.groups, size = mask, groups, WIDTH // HEADS
        self.before, self.behind = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * groups * size)
        self.out, self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 24), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        z = self.before(x)
        q = self.q(z).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = (part.unflatten(-1, (self.groups, -1)).transpose(1, 2) for part in self.kv(z).chunk(2, -1))
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, enable_gqa=self.groups != HEADS)
        x = x + self.out(a.transpose(1, 2).flatten(2))
        gate, value = self.up(self.behind(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


def everyone() -> Tensor:
    return torch.ones(TOKENS, TOKENS, dtype=torch.bool)


MASKS = {"none": None, "causal": everyone().tril(), "window": everyone().tril() & everyone().triu(-2)}


def transformer(mask: str, groups: int = HEADS, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(Block(MASKS[mask], groups), Block(MASKS[mask], groups)).to(dtype).eval()
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net


@pytest.mark.parametrize("gates", ["tangent", "frozen", {"softmax": "held", "norm": "tangent", "product": "half"}],
                         ids=str)
@pytest.mark.parametrize("groups", [HEADS, 2, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_no_stage_is_opaque_and_every_engine_is_right(mask, groups, gates):
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    local = specxai.linearize(transformer(mask, groups), x, gates=gates, backend="reference")
    graph, output = local.graph, local.captured.program.output
    want = local.jacobian.to_dense()
    if gates == "tangent":
        truth = torch.autograd.functional.jacobian(local.captured.model, x).reshape(want.shape)
        assert_close(want, truth, 10)
    for name in ENGINES:
        products = make(name, graph).products([graph.input], [output], [])
        assert products.opaque == []
        assert_close(products.matmat(torch.eye(len(want), dtype=x.dtype)), want, 4)
        assert_close(products.rmatmat(torch.eye(len(want), dtype=x.dtype)).T, want, 4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mask", MASKS)
def test_parts_of_the_tokens(engine, mask):
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    local = specxai.linearize(transformer(mask), x, backend="reference")
    graph, output, want = local.graph, local.captured.program.output, local.jacobian.to_dense()
    for source, target in ((2, 4), (5, 5), (4, 1), (0, 0)):
        columns, rows = (torch.arange(t * WIDTH, (t + 1) * WIDTH) for t in (source, target))
        products = make(engine, graph).products([graph.input], [output], [], columns, rows)
        part, eye = want[rows][:, columns], torch.eye(WIDTH, dtype=x.dtype)
        scale = want.abs().max()
        assert_close(torch.cat([products.matmat(eye), scale[None, None].expand(1, WIDTH)]),
                     torch.cat([part, scale[None, None].expand(1, WIDTH)]), 4)
        assert_close(torch.cat([products.rmatmat(eye).T, scale[None, None].expand(1, WIDTH)]),
                     torch.cat([part, scale[None, None].expand(1, WIDTH)]), 4)


def test_what_is_before_the_last_token_is_dead_in_the_last_layer():
    local = specxai.linearize(transformer("causal"), torch.randn(1, TOKENS, WIDTH, dtype=torch.float64))
    graph, program = local.graph, local.captured.program
    last = torch.arange((TOKENS - 1) * WIDTH, TOKENS * WIDTH)
    plan = Planner(graph).plan([graph.input], [program.output], [], rows=last)
    down = [stage for stage in plan.stages if isinstance(stage, Gather) and stage.sites.inputs == 12]
    assert [int((stage.writes >= 0).any(1).sum()) for stage in down] == [TOKENS, 1]


def test_what_is_before_a_source_is_dead_by_causality():
    local = specxai.linearize(transformer("causal"), torch.randn(1, TOKENS, WIDTH, dtype=torch.float64))
    graph, program = local.graph, local.captured.program
    plan = Planner(graph).plan([graph.input], [program.output], [], columns=torch.arange(4 * WIDTH, 5 * WIDTH))
    down = [stage for stage in plan.stages if isinstance(stage, Gather) and stage.sites.inputs == 12]
    assert [int((stage.writes >= 0).any(1).sum()) for stage in down] == [2, 2]  # tokens 4 and 5
    assert plan.collect.writes.min() == 4 * WIDTH


def test_a_window_forgets():
    local = specxai.linearize(transformer("window"), torch.randn(1, TOKENS, WIDTH, dtype=torch.float64))
    graph, program = local.graph, local.captured.program
    live = Planner(graph).live_units([graph.input], [program.layer("0")[1]], [])
    only = Planner(graph).plan([graph.input], [program.layer("0")[1]], [], rows=torch.arange(5 * WIDTH, 6 * WIDTH))
    assert live[graph.input].all()
    assert sorted(set((only.seed.reads // WIDTH).tolist())) == [3, 4, 5]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_norm_of_repeated_and_of_closed_units(engine):
    """Its adjoint must not write one row twice, nor read what is dead."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            repeated = torch.cat([x, x.flip(-1)], -1).relu()
            return F.layer_norm(repeated, (8,)) * torch.tensor([1.0, 0, 1, 1, 1, 0, 1, 1], dtype=x.dtype)

    net, x = Net().eval(), torch.tensor([[1.0, -2, 3, 4], [2, 1, -1, 5]], dtype=torch.float64)[None].reshape(1, 2, 4)
    local = specxai.linearize(net, x, backend=engine)
    want = torch.autograd.functional.jacobian(net, x).reshape(16, 8)
    assert_close(local.jacobian.to_dense(), want, 4)
    assert_close(local.jacobian.T.to_dense(), want.T, 4)


def test_a_softmax_that_is_added_to_what_is_there():
    net = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)).double().eval()

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = net[0](x)
            return net[1](z) + z.tanh() * net[1](z).sum(-1, keepdim=True)

    x = torch.randn(1, 3, 4, dtype=torch.float64)
    want = torch.autograd.functional.jacobian(Twice(), x).reshape(12, 12)
    for name in ENGINES:
        assert_close(specxai.linearize(Twice().eval(), x, backend=name).jacobian.T.to_dense(), want.T, 4)


def test_a_held_norm_without_a_mean_is_no_stage():
    net = nn.Sequential(nn.RMSNorm(4), nn.Linear(4, 4)).double().eval()
    graph = specxai.linearize(net, torch.randn(1, 3, 4, dtype=torch.float64), gates="frozen").graph
    stages = Planner(graph).plan([graph.input], [max(graph.nodes)], []).stages
    assert not any(isinstance(stage, LowRank) for stage in stages)
    assert [type(stage) for stage in stages] == [Sum, Gather]  # the scales differ by token: a copy takes them


@pytest.mark.skipif(not native.available()[0], reason="needs the compiled module")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("probes", [1, 3, 8, 16, 37, 64, 100])
def test_low_rank_kernel(dtype, rank, probes):
    generator = torch.Generator().manual_seed(probes + rank)
    groups, size = 5, 7

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def table() -> Tensor:
        rows = torch.randperm(60, generator=generator)[:groups * size].int().reshape(groups, size)
        return rows.masked_fill(torch.rand(groups, size, generator=generator) < 0.3, -1)

    inside, outside, diagonal = table(), table(), draw(groups, size)
    left, right = draw(groups, rank, size), draw(groups, rank, size)
    stage = native.LowRank(inside=inside, outside=outside, diagonal=diagonal, left=left, right=right)
    block, before = draw(60, probes), draw(60, probes)
    block[50:] = torch.nan  # rows that no one names
    block[inside[inside >= 0].long()] = draw(int((inside >= 0).sum()), probes)
    read = torch.where((inside >= 0)[..., None], block[inside.long()], 0).double()
    made = diagonal.double()[..., None] * read + left.double().mT @ (right.double() @ read)
    for accumulate in (False, True):
        for level in ("scalar", native.simd_level()):
            output, want = before.clone(), before.double().clone()
            stage.run(block, output, probes, accumulate, level)
            rows = outside[outside >= 0].long()
            want[rows] = made[outside >= 0] + (want[rows] if accumulate else 0)
            assert_close(output, want)


@pytest.mark.skipif(not native.available()[0], reason="needs the compiled module")
@pytest.mark.parametrize(("change", "message"), [
    ({"left": torch.ones(2, 3, 4), "right": torch.ones(2, 3, 4)}, "rank 3; it is 1 to 2"),
    ({"right": torch.ones(2, 1, 5)}, r"right has shape \(2, 1, 5\)"),
    ({"outside": torch.zeros(2, 4, dtype=torch.int32)}, "holds row 0 twice"),
    ({"inside": torch.full((2, 4), -2, dtype=torch.int32)}, "inside spans -2"),
    ({"diagonal": torch.ones(2, 4, dtype=torch.float64)}, "left")])
def test_low_rank_kernel_refuses(change, message):
    rows = torch.arange(8, dtype=torch.int32).reshape(2, 4)
    given = {"inside": rows, "outside": rows, "diagonal": torch.ones(2, 4), "left": torch.ones(2, 1, 4),
             "right": torch.ones(2, 1, 4)} | change
    with pytest.raises((ValueError, TypeError), match=message):
        native.LowRank(**given)


def test_the_report_names_no_opaque_step():
    local = specxai.linearize(transformer("causal", dtype=torch.float32), torch.randn(1, TOKENS, WIDTH),
                              backend=ENGINES[-1])
    assert "whole values" not in local.report()


def test_a_planner_keeps_no_factors_of_a_large_graph(monkeypatch):
    """Copies of patterns and scales, as large as the values: another plan finds them again, and is the same."""
    local = specxai.linearize(transformer("causal"), torch.randn(1, TOKENS, WIDTH, dtype=torch.float64), verify=False)
    ends = [local.graph.input], [local.captured.program.output], []
    planner = Planner(local.graph)
    wanted = planner.plan(*ends)
    assert sum(structure.holds_factors for structure in planner._structures.values()) >= 8  # four a block
    monkeypatch.setattr("specxai.plan.planner.KEPT_UNITS", 0)
    for _ in range(2):
        plan = planner.plan(*ends)
        assert not planner._structures
        for stage, other in zip(plan.stages, wanted.stages, strict=True):
            assert torch.equal(stage.reads, other.reads)
            assert torch.equal(stage.writes, other.writes)
