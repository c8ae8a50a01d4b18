"""Weights packed per site: what they hold, when they are chosen, and what they may take; values beside those of the
other ways are in test_gather_gemm.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.backends.cuda import CudaEngine, tuned
from specxai.backends.cuda.stages import GatherWork
from specxai.backends.products import PlannedBackend
from specxai.backends.torch import TorchEngine
from specxai.kernels import gather_counts, gather_sites
from specxai.kernels.gather_gemm import gather_gemm, gathering
from test_stages import random_stage, rows
from tolerances import assert_close

CPU = torch.device("cpu")


def packed(arguments: dict, **factors):
    return gathering(**arguments, device="cpu", prefer="sites", **factors)


def sparse_stage(sites: int = 9, **changes):
    """Three taps of few sites, with a sixth of the units alive on both sides."""
    return random_stage(sites, torch.float32, **{"depth": 200, "made": 200, "dead": (0.85, 0.85), **changes})[0]


def tables_of(flow) -> list[torch.Tensor]:
    return [t for value in vars(flow).values() for t in (value.values() if isinstance(value, dict) else [value])
            if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("groups", [1, 3])
def test_packed_weights_are_of_live_pairs(groups):
    """Each once, and else zeros that fill up chunks and panels; of a dead unit none is read."""
    arguments, _ = random_stage(8, torch.float32, groups, depth=40, made=50)
    weight = arguments["weight"]
    arguments["weight"] = torch.arange(1.0, weight.numel() + 1).reshape(weight.shape)  # each its own number
    tables = packed(arguments)
    flow, inside = tables.flow, arguments["inside"].reshape(9, groups, -1)
    want = []
    for s, near in enumerate(arguments["neighbours"].tolist()):
        for o in (arguments["outside"][s] >= 0).nonzero().flatten().tolist():
            for t, q in enumerate(near):
                if q >= 0:
                    want += arguments["weight"][o, t, inside[q, o // 50] >= 0].tolist()
    assert sorted(flow.weight[flow.weight != 0].tolist()) == sorted(want)
    assert tables.entries == len(want)
    assert tables.operations["sites"] == flow.weight.numel() == tables.counts.packed // 4
    assert flow.weight.numel() < 2.5 * tables.entries
    assert (flow.outside >= 0).sum() == (arguments["outside"] >= 0).sum()


def test_a_site_without_live_outputs_has_no_list_and_one_without_inputs_writes_zeros():
    arguments, dense = random_stage(6, torch.float32, depth=20, made=40)
    arguments["outside"][2] = -1
    arguments["neighbours"][4] = -1
    tables = packed(arguments)
    without = {name: arguments[name][[0, 1, 3, 5]] for name in ("outside", "neighbours")}
    assert len(tables.flow.rows) == len(packed(arguments | without).flow.rows)
    got = torch.full((len(dense), 9), torch.nan)
    gather_gemm(tables, torch.randn(dense.shape[1], 9), got)
    assert (got[rows(arguments["outside"][4])] == 0).all()
    assert int(got.isfinite().all(1).sum()) == len(rows(arguments["outside"]))


@pytest.mark.parametrize("scaled", [False, True])
def test_slabs_change_nothing(scaled, monkeypatch):
    arguments, _ = random_stage(7, torch.float64, 2, depth=30, made=90)
    factors = {}
    if scaled:
        factors = {name: torch.randn(arguments[side].shape, dtype=torch.float64)
                   for name, side in (("scale", "inside"), ("made_scale", "outside"))}
    whole = packed(arguments, **factors).flow
    monkeypatch.setattr(gather_sites, "SLAB", 3000)  # a chunk or two
    again = packed(arguments, **factors).flow
    assert whole.weight.numel() > 10 * 3000
    assert all(torch.equal(a, b) for a, b in zip(tables_of(whole), tables_of(again), strict=True))
    assert whole.factor is None is whole.made_factor, "factors are in the weights"


@pytest.mark.parametrize(("limit", "value"), [("MOST_BYTES", 4000), ("MOST_COPIES", 0.01), ("MOST_ENTRIES", 100)])
def test_what_takes_too_much_is_no_way(limit, value, monkeypatch):
    arguments = sparse_stage()
    assert gathering(**arguments, device="cpu").gathers == "sites"
    monkeypatch.setattr(gather_counts if limit == "MOST_ENTRIES" else gather_sites, limit, value)
    tables = gathering(**arguments, device="cpu")
    assert tables.gathers != "sites"
    assert tables.operations.keys() == {"inputs", "outputs"}
    assert tables.counts.packed == 0
    with pytest.raises(ValueError, match=r"prefer='sites' is none of inputs, outputs.*MOST_BYTES and MOST_COPIES"):
        packed(arguments)


@pytest.mark.parametrize(("name", "stage", "chosen"), [
    ("few live on both sides", {}, True),
    ("half live", {"dead": (0.5, 0.5)}, False),
    ("few live on one side", {"dead": (0.9, 0.0)}, False),
    ("an early layer: many sites and few weights", {"sites": 400, "depth": 16, "made": 16}, False),
])
def test_chosen_where_counted_reading_is_less_than_counted_computing(name, stage, chosen):
    tables = gathering(**sparse_stage(**stage), device="cpu")
    assert (tables.gathers == "sites") == chosen, name
    seconds = tables.counts.seconds
    if chosen:
        assert seconds["sites"] < 0.8 * min(seconds["inputs"], seconds["outputs"])
        assert seconds["sites"] == pytest.approx(
            4 * (tables.flow.weight.numel() + 64 * sum(int((side >= 0).sum()) for side in (
                sparse_stage()["inside"], sparse_stage()["outside"]))) / 3.35e12)


def test_what_counts_allow_to_be_tried():
    seconds = {"inputs": 1.0, "outputs": 1.9, "sites": 0.9}
    counts = gather_counts.Counts(1, {"inputs": 10, "outputs": 20, "sites": 5}, seconds, 20, 16, None)
    assert counts.within(2.0) == ["inputs", "outputs", "sites"]
    assert counts.within(1.0) == ["inputs", "sites"]
    seconds["sites"] = 1.1
    assert counts.within(2.0) == ["inputs", "outputs"]
    seconds["sites"] = 0.7
    assert counts.within(1.0) == ["sites"]
    assert counts.within(2.0) == ["sites", "inputs"]
    counts.operations["outputs"] = 21
    seconds["sites"] = 1.1
    assert counts.within(2.0) == ["inputs"], "as long, of reading and writing, but twice the operations"


class Closed(nn.Module):
    """Convolutions at nine positions, of whose units a sixth are alive; one adds onto the stream."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, width, 3, padding=1)
        self.inner, self.last = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x):
        h = self.first(x).relu()
        return self.last((h + self.inner(h)).relu()).relu()


def closed_graph(dtype: torch.dtype):
    torch.manual_seed(0)
    net, x = Closed().to(dtype), torch.randn(1, 2, 3, 3, dtype=dtype)
    with torch.no_grad():
        h = x
        for layer, stream in ((net.first, False), (net.inner, True), (net.last, False)):
            z = layer(h) + (h if stream else 0)
            layer.bias -= z.quantile(0.85)
            h = (z - z.quantile(0.85)).relu()
    return specxai.capture(net.eval(), x, verify=False).linearize(x, backend="torch", verify=False).graph


def products_of(graph, engine):
    return PlannedBackend(graph, engine).products([graph.input], [max(graph.nodes)], [])


def gathers_of(products) -> list[GatherWork]:
    return [work for work in products._work if isinstance(work, GatherWork)]


@pytest.mark.parametrize("columns", [3, 33])
def test_through_the_engine(dtype, columns):
    graph = closed_graph(dtype)
    ours, torchs = (products_of(graph, engine(dtype, CPU)) for engine in (CudaEngine, TorchEngine))
    X, Y = (torch.randn(size, columns, dtype=dtype) for size in (ours._n, ours._m))
    made, back = ours.matmat(X), ours.rmatmat(Y)
    assert made.abs().sum() > 0
    assert_close(made, torchs.matmat(X), factor=8)
    assert_close(back, torchs.rmatmat(Y), factor=8)
    assert torch.equal(made, ours.matmat(X))
    assert torch.equal(back, ours.rmatmat(Y))
    ways = [(work._there.gathers, work._back.gathers) for work in gathers_of(ours)]
    assert ("sites", "sites") in ways, ways


def test_packed_weights_are_stated(dtype, monkeypatch):
    graph = closed_graph(dtype)
    ours = products_of(graph, CudaEngine(dtype, CPU))
    for size, product in ((ours._n, ours.matmat), (ours._m, ours.rmatmat)):
        product(torch.randn(size, 2, dtype=dtype))
    stated = []
    for work in gathers_of(ours):
        flows = [tables.flow for tables in (work._there, work._back)]
        weights = sum(flow.weight.nbytes for flow in flows if flow.gathers == "sites")
        beside = sum(t.nbytes for flow in flows for t in tables_of(flow) if t is not flow.weight)
        assert work.kept >= weights + beside
        stated.append((weights, work.kept))
    assert max(stated)[0] > 0
    monkeypatch.setattr(gather_counts, "FEWER", 0.0)  # level with the others, but not chosen
    level = gathers_of(products_of(graph, CudaEngine(dtype, CPU)))
    monkeypatch.setattr(gather_sites, "MOST_BYTES", 0)
    without = gathers_of(products_of(graph, CudaEngine(dtype, CPU)))
    for (weights, kept), work in zip(stated, without, strict=True):
        assert (kept > work.kept) == (weights > 0)
        assert kept - work.kept >= weights
    assert [work.kept for work in level] == [work.kept for work in without], "stated where it does not run"


def test_tried_with_the_others(monkeypatch):
    """With a clock that says that what packs is the fastest, and where counts alone would not choose it."""
    graph, names = closed_graph(torch.float32), []
    monkeypatch.setattr(gather_counts, "FEWER", 0.0)
    run = tuned.Choices._try

    def noted(self, key, ways, trial):
        return run(self, key, ways, lambda way: (names.append(way.name), trial(way))[1])

    def clock(work) -> float:
        work()
        return 1.0 if names[-1].startswith("sites") else 2.0

    monkeypatch.setattr(tuned.Choices, "_try", noted)
    wanted = products_of(graph, TorchEngine(torch.float32, CPU))
    with tuned.using(CPU, tuned.Choices(clock)) as found:
        ours = products_of(graph, CudaEngine(torch.float32, CPU))
        stated = ours.product_bytes(4)
        X, Y = (torch.randn(size, 4) for size in (ours._n, ours._m))
        for _ in range(2):
            assert_close(ours.matmat(X), wanted.matmat(X), factor=8)
            assert_close(ours.rmatmat(Y), wanted.rmatmat(Y), factor=8)
        chosen = [row["chosen"].split(",")[0] for row in found.table()]
        assert "sites" in chosen, chosen
        assert all(row["counted"].split(",")[0] != "sites" for row in found.table())
    assert stated > products_of(graph, CudaEngine(torch.float32, CPU)).product_bytes(4)
