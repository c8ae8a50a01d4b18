"""Every engine runs every plan alike: native = torch = reference = the model's own derivative, row by row."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from torch import Tensor, nn

import specxai
from random_nets import random_net
from specxai import backends, native
from specxai.plan import Gather, Opaque, Planner, tables
from tolerances import RELATIVE

NETS, CHUNK = 100, 10  # for each dtype
ENGINES = ("reference", "torch", *(["native"] if native.available()[0] else []))


def assert_rows_close(got: Tensor, want: Tensor, factor: float = 1.0) -> None:
    """Row by row, so that a small row is held to its own size."""
    assert got.shape == want.shape
    error = (got - want).abs().amax(1)
    bound = factor * RELATIVE[got.dtype] * want.abs().amax(1).clamp_min(torch.finfo(got.dtype).tiny)
    assert bool((error <= bound).all()), f"rows off by {(error / bound).max():.2f} of what is allowed"


def both_ways(J: specxai.LocalOperator) -> Tensor:
    """J by its forward products, and below by its reverse ones."""
    m, n = J.shape
    return torch.cat([J.matmat(torch.eye(n, dtype=J.dtype)), J.rmatmat(torch.eye(m, dtype=J.dtype)).T])


@pytest.mark.parametrize("start", range(0, NETS, CHUNK))
def test_random_nets(start, dtype):
    for seed in range(start, start + CHUNK):
        net, x = random_net(seed, dtype)
        captured = specxai.capture(net, x, verify=False)
        locals_ = {name: captured.linearize(x, backend=name, verify=False) for name in ENGINES}
        found = {name: both_ways(local.jacobian) for name, local in locals_.items()}
        own = torch.autograd.functional.jacobian(lambda z, net=net: net(z).flatten(), x).flatten(1)
        # Cancellation is the net's: it is what J's certificate allows for, against the model itself.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            allowed = 4 * max(1.0, captured.linearize(x, verify=True).agreement_details.cancellation)
        for J in found.values():
            assert_rows_close(J, torch.cat([own, own]), allowed)
            assert_rows_close(J, found["reference"], allowed)
        layer = random.Random(seed).choice(locals_["torch"].layers[:-1])
        for part in ("right", "left", "bypass"):
            operators = [getattr(local.split(layer), part) for local in locals_.values()]
            if operators[0] is None:
                continue
            blocks = [torch.randn(side, 5, dtype=dtype) for side in operators[0].shape]
            want = operators[0].matmat(blocks[1]), operators[0].rmatmat(blocks[0])
            for operator in operators[1:]:
                got = operator.matmat(blocks[1]), operator.rmatmat(blocks[0])
                for a, b in zip(got, want, strict=True):
                    assert (a - b).norm() <= allowed * RELATIVE[dtype] * b.norm(), (seed, layer, part)


@pytest.mark.skipif("native" not in ENGINES, reason="torch's own products differ with the number of threads")
def test_the_same_bits_on_any_number_of_threads(dtype):
    net, x = random_net(3, dtype)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        J = specxai.linearize(net, x, backend="native").jacobian
        found.append((both_ways(J), J @ torch.ones(J.shape[1], 70, dtype=dtype)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_plans_need_no_compiled_module(monkeypatch):
    """Index work in torch gives the tables that the compiled module gives."""
    if not native.available()[0]:
        pytest.skip("there is no compiled module to compare with")
    for seed in range(8):
        net, x = random_net(seed, torch.float64)
        graph = specxai.linearize(net, x, backend="reference", verify=False).graph
        plans = []
        for there in (True, False):
            with monkeypatch.context() as patch:
                if not there:
                    patch.setattr(tables.native, "available", lambda: (False, "left out"))
                plans.append(Planner(graph).plan([graph.input], [max(graph.nodes)], []))
        ours, theirs = plans
        assert (ours.rows, ours.source, ours.direct, ours.seed_zero, ours.collect_zero) == (
            theirs.rows, theirs.source, theirs.direct, theirs.seed_zero, theirs.collect_zero)
        assert len(ours.stages) == len(theirs.stages) > 2
        for a, b in zip(ours.stages, theirs.stages, strict=True):
            assert (type(a), a.step, a.place) == (type(b), b.step, b.place)
            assert torch.equal(a.reads, b.reads)
            assert torch.equal(a.writes, b.writes)


def test_a_plan_is_frozen():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Softmax(-1), nn.Linear(8, 3)).eval()
    graph = specxai.linearize(net, torch.randn(1, 1, 4, 4)).graph
    plan = Planner(graph).plan([graph.input], [max(graph.nodes)], [])
    assert [type(stage) for stage in plan.stages] == [Gather, Opaque, Gather]
    for part, name in ((plan, "rows"), (plan.stages[0], "reads"), (plan.stages[1], "place"), (graph, "nodes")):
        with pytest.raises(AttributeError):
            setattr(part, name, None)


@pytest.mark.parametrize(("sources", "targets", "message"), [
    ([], [2], "sources are steps of the graph, .* got none"), ([0], [99], "targets are steps of the graph, .* got 99")])
def test_ends_that_a_plan_cannot_have(sources, targets, message):
    graph = specxai.linearize(nn.Linear(3, 2).eval(), torch.ones(1, 3)).graph
    with pytest.raises(ValueError, match=message):
        Planner(graph).plan(sources, targets, [])


def test_explain_on_torch_is_explain_on_native():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 9, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(9, 9, 3, groups=9),
                        nn.BatchNorm2d(9), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).eval()
    x = torch.randn(1, 3, 8, 8)
    found = [specxai.explain(net, x, "3", target=1, rank=4, backend=name) for name in ENGINES]
    for e, name in zip(found, ENGINES, strict=True):
        assert torch.allclose(e.S, found[0].S, rtol=1e-5)
        assert torch.allclose(e.alpha, found[0].alpha, rtol=1e-4, atol=1e-6)
        assert e.backends == {"decomposition": name, "targets": name}


def test_what_runs_where_is_said():
    known = {name: (ok, reason) for name, ok, reason in backends.describe("cuda", torch.float32)}
    assert known["torch"] == (True, "plans in plain PyTorch, on cuda")
    assert not known["native"][0]
    assert "run on the CPU" in known["native"][1]
    with pytest.raises(RuntimeError, match=r"the model is torch\.bfloat16; use backend="):
        backends.choose("torch", "cpu", torch.bfloat16)


def test_a_report_says_what_runs_where():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Softmax(-1), nn.Linear(8, 3)).eval()
    report = specxai.linearize(net, torch.randn(1, 6), backend="torch").report()
    assert "backend torch\n" in report
    assert "through whole values, by the reference's terms: softmax.int in 2" in report
    assert "refused: cuda, the kernels run on an NVIDIA GPU, the model is on cpu" in report


def test_traffic_counts_each_row_once_a_stage():
    net = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.randn(1, 8, 4, 4)
    J = specxai.linearize(net, x, backend="torch").jacobian
    # The convolution reads 128 rows and writes 16, which the last layer reads once; it writes 3.
    assert J.bytes_moved(10) == 4 * 10 * (128 + 16 + 16 + 3)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_a_winner_of_two_windows_is_read_twice(engine, groups, dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, 1), nn.Conv2d(4, 4, 3, groups=groups), nn.Flatten()).eval()
    net, x = net.to(dtype), torch.randn(1, 2, 9, 9, dtype=dtype)
    captured = specxai.capture(net, x, verify=False)
    ours, want = (captured.linearize(x, backend=name).jacobian for name in (engine, "reference"))
    assert_rows_close(both_ways(ours), both_ways(want), 4)
    Y = torch.randn(ours.shape[0], 20, dtype=dtype)
    assert_rows_close(ours.T @ Y, want.T @ Y, 4)
