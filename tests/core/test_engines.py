"""Every engine runs every plan alike: native = torch = reference = the model's own derivative, row by row."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import specxai
from random_nets import Apply, random_net
from specxai import backends, native
from specxai.plan import Gather, LowRank, Planner, tables
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


@pytest.mark.skipif("native" not in ENGINES, reason=f"no compiled kernels: {native.available()[1]}")
def test_the_same_bits_on_any_number_of_threads(dtype):
    """Of the compiled kernels: torch's own products differ with the number of threads."""
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
        pytest.skip(f"no compiled module to compare with: {native.available()[1]}")
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
    assert [type(stage) for stage in plan.stages] == [Gather, LowRank, Gather]
    for part, name in ((plan, "rows"), (plan.stages[0], "reads"), (plan.stages[1], "place"), (graph, "nodes")):
        with pytest.raises(AttributeError):
            setattr(part, name, None)


def ask_planner(local, *ends):
    Planner(local.graph).plan(*ends)


def ask_backend(local, *ends):
    backends.make(local.backend, local.graph).products(*ends)


def ask_operator(local, sources, targets, held, columns, rows):
    specxai.LocalOperator(local._backend, sources, targets, held=held, columns=columns, rows=rows,
                          dtype=torch.float32, max_memory=1 << 30)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"sources": [77]}, ValueError, "sources are steps of the graph, .*; got 77"),
    ({"sources": ["0"]}, ValueError, "sources are steps of the graph, .*; got '0'"),
    ({"sources": 0}, TypeError, "sources is a list of steps .*; got 0"),
    ({"sources": []}, ValueError, "sources are steps of the graph, one or more.* got none"),
    ({"sources": [0, 0]}, ValueError, r"sources holds a step twice, \[0, 0\]; give each once"),
    ({"targets": [77]}, ValueError, "targets are steps of the graph, .*; got 77"),
    ({"targets": None}, TypeError, "targets is a list of steps .*; got None"),
    ({"targets": [3, 0, 3]}, ValueError, r"targets holds a step twice, \[3, 0, 3\]"),
    ({"held": [77]}, ValueError, "held are steps of the graph, .*; got 77"),
    ({"held": [[3]]}, ValueError, r"held are steps of the graph, .*; got \[3\]"),
    ({"columns": torch.tensor([0, 3])}, ValueError, "columns are units of the sources, which have 3, .* got 3"),
    ({"columns": torch.tensor([-1, 0])}, ValueError, "columns are units of the sources, .*; got -1"),
    ({"columns": torch.tensor([1, 0, 1])}, ValueError, r"columns names a unit twice; .* columns\.unique"),
    ({"columns": torch.tensor([0], dtype=torch.int32)}, TypeError, r"columns is .*; take .* \.long\(\) of other"),
    ({"columns": torch.tensor([True, False, True])}, TypeError, r"columns is .*; take \.nonzero\(\)\.flatten\(\)"),
    ({"columns": [0, 1]}, TypeError, "columns is a tensor of units' numbers in torch.int64, got list"),
    ({"rows": torch.tensor([[0], [1]])}, ValueError, r"rows has shape \(2, 1\), .* take rows\.flatten"),
    ({"rows": torch.tensor(1)}, ValueError, r"rows has shape \(\)"),
    ({"rows": torch.tensor([2])}, ValueError, "rows are units of the targets, which have 2, .* got 2")])
@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("ask", [ask_planner, ask_backend, ask_operator])
def test_ends_that_there_are_not(ask, backend, change, error, message):
    local = specxai.linearize(nn.Linear(3, 2, bias=False).eval(), torch.ones(1, 3), backend=backend)
    assert (local.graph.input, max(local.graph.nodes)) == (0, 3)
    good = {"sources": [0], "targets": [3], "held": [], "columns": torch.tensor([2, 0]), "rows": None}
    ask(local, *good.values())
    with pytest.raises(error, match=message):
        ask(local, *(good | change).values())


@pytest.mark.parametrize("backend", ENGINES)
def test_live_units_of_steps_that_there_are_not(backend):
    local = specxai.linearize(nn.Linear(3, 2, bias=False).eval(), torch.ones(1, 3), backend=backend)
    with pytest.raises(ValueError, match=r"held are steps of the graph, .* got 9"):
        local._backend.live_units([0], [3], [9])
    with pytest.raises(ValueError, match=r"sources are steps of the graph, .* got 77"):
        local.operator([77], [3])


def test_a_backend_that_there_is_not():
    graph = specxai.linearize(nn.Linear(3, 2).eval(), torch.ones(1, 3)).graph
    for name in ("nativ", "auto", None):
        with pytest.raises(ValueError, match=f"unknown backend {name!r}; choose reference, native, torch, cuda"):
            backends.make(name, graph)


@pytest.mark.parametrize("backend", ENGINES)
def test_products_of_no_columns(backend):
    net = nn.Sequential(nn.Conv1d(1, 4, 2), nn.GLU(1), nn.Softmax(-1)).eval()
    graph = specxai.linearize(net, torch.ones(1, 1, 4)).graph
    R = backends.make(backend, graph).products([graph.input], [max(graph.nodes)], [])
    assert (R.matmat(torch.ones(4, 0)).shape, R.rmatmat(torch.ones(6, 0)).shape) == ((6, 0), (4, 0))


@pytest.mark.parametrize("backend", ENGINES)
def test_products_carry_no_autograd_graph(backend):
    graph = specxai.linearize(nn.Sequential(nn.Linear(3, 2), nn.Softmax(-1)).eval(), torch.ones(1, 3)).graph
    R = backends.make(backend, graph).products([graph.input], [max(graph.nodes)], [])
    for columns in (1, 20):
        X, Y = (torch.ones(side, columns, requires_grad=True) for side in (3, 2))
        assert not R.matmat(X).requires_grad
        assert not R.rmatmat(Y).requires_grad


@pytest.mark.parametrize("backend", [*ENGINES, "auto"])
@pytest.mark.parametrize("net, shape", [(nn.Sequential(nn.ReLU()), (1, 0)), (nn.Sequential(nn.Flatten()), (1, 2, 0)),
                                        (nn.Sequential(nn.Linear(0, 3), nn.ReLU(), nn.Linear(3, 2)), (1, 0))])
def test_an_input_of_no_numbers(net, shape, backend):
    x = torch.randn(shape)
    local = specxai.linearize(net.eval(), x, backend=backend)
    m = net(x).numel()
    J = local.jacobian
    assert (J.shape, J.to_dense().shape, (J @ torch.ones(0, 3)).shape) == ((m, 0), (m, 0), (m, 3))
    assert (J.T @ torch.ones(m, 20)).shape == (0, 20)
    assert torch.equal(local.bias, net(x))
    assert local.exactness < 1e-6
    assert specxai.svd(J).S.numel() == 0
    assert local.split("0").right.shape[1] == 0
    assert "Local" in repr(local)
    assert local.report()


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
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Apply(lambda z: z.cumprod(-1)), nn.Linear(8, 3)).eval()
    report = specxai.linearize(net, torch.randn(1, 6), backend="torch").report()
    assert "backend torch, products in float32\n" in report
    assert "through whole values, by the reference's terms: cumprod.default in 2" in report
    assert "refused: cuda" not in report  # of no device that the model is on


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


MEASURE = """
import sys, torch, specxai
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
torch.set_num_threads(1)
torch.manual_seed(0)
specxai.linearize(nn.ReLU().eval(), torch.ones(1, 4)).jacobian @ torch.ones(4)  # torch's own memory

def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

class Spread(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x):
        return getattr(torch.nn.functional, self.name)(x.reshape(1, 64, 256), dim=-1).flatten(1)

NETS = {
    "convolutions": (nn.Sequential(nn.Conv2d(128, 160, 3, padding=1), nn.ReLU(), nn.Conv2d(160, 128, 3)),
                     (1, 128, 24, 24)),
    "depthwise": (nn.Sequential(nn.Conv2d(64, 64, 5, padding=2, groups=64), nn.ReLU(), nn.AvgPool2d(3, 1, 1)),
                  (1, 64, 48, 48)),
    "low rank": (nn.Sequential(Spread("softmax"), nn.Linear(16384, 4)), (1, 16384)),
    "opaque": (nn.Sequential(Spread("glu"), nn.Linear(8192, 4)), (1, 16384)),
}
for name, (net, shape) in NETS.items():
    J = specxai.linearize(net.eval(), torch.randn(shape), backend=sys.argv[1], verify=False).jacobian
    for columns in (1, 40):
        for side, product in zip(J.shape[::-1], (J._products.matmat, J._products.rmatmat)):
            block = torch.ones(side, columns)
            before = status("VmRSS")
            open("/proc/self/clear_refs", "w").write("5")
            product(block)
            print(name.replace(" ", "_"), columns, J._products.product_bytes(columns), status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's peak of resident memory")
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_a_product_holds_what_it_says(engine):
    """The first of each kind too, which makes tables and copies of the weights."""
    weights = 4 * 9 * 2 * 128 * 160
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
                   "PYTHONPATH": str(Path(specxai.__file__).parents[1])}
    command = [sys.executable, "-P", "-c", MEASURE, engine]  # -P keeps the checkout off the path
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    assert len(found) == 4 * 2 * 2
    for name, columns, stated, held in found:
        own = 4 * weights if name == "convolutions" else 0
        assert int(held) <= int(stated) + own + (3 << 20), (name, columns, stated, held)


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_a_small_net_needs_little_memory(engine):
    net, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softmax(1)).eval(), torch.randn(1, 1, 5, 5)
    J = specxai.linearize(net, x, backend=engine, max_memory=20_000).jacobian
    assert 1 <= J.block_size < 40
    assert_rows_close(both_ways(J), both_ways(specxai.linearize(net, x, backend="reference").jacobian), 4)


def test_no_memory_is_taken_in_advance_beyond_the_bound():
    net, x = nn.Sequential(nn.Linear(500, 400), nn.ReLU(), nn.Linear(400, 3)).eval(), torch.randn(1, 500)
    sizes = {}
    for bound in (1 << 30, 150_000):
        products = specxai.linearize(net, x, backend="torch", max_memory=bound).jacobian._products
        products.matmat(torch.ones(500, 1))
        (idle,) = products._arenas.idle
        sizes[bound] = idle.numel() / products.arena_rows
    assert sizes == {1 << 30: 64, 150_000: 1}
    away = backends.products.Arenas(products._engine, 0)
    with away.block(10, 3) as block:
        assert block.shape == (10, 3)
    assert [idle.numel() for idle in away.idle] == [30]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", range(0, 30, 10))
def test_cotangents_on_the_way(start, dtype):
    """What an adjoint passes on at every step between is what the reference has at its live units."""
    for seed in range(start, start + 10):
        net, x = random_net(seed, dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            local = specxai.linearize(net, x, gates=random.Random(seed).choice(["tangent", "frozen"]), verify=False)
        graph, output = local.graph, local.captured.program.output
        path = graph.between([graph.input], [output])
        Y = torch.randn(graph.shapes[output].numel(), 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
        found = {}
        for name in ENGINES:
            passed = found.setdefault(name, {})
            products = backends.make(name, graph).products([graph.input], [output], [], taps=path)
            passed[graph.input] = products.rmatmat(Y, passed=passed.__setitem__)
        assert set(found["reference"]) == {graph.input, *path}
        for name in ENGINES[1:]:
            assert set(found[name]) == set(found["reference"])
            live = Planner(graph).live_units([graph.input], [output], [])
            for step, want in found["reference"].items():
                want = want.detach() * live[step][:, None]
                scale = max(float(want.abs().max()), 1e-3 * float(found[name][graph.input].abs().max()))
                error = float((found[name][step] - want).abs().max())
                assert error <= 20 * RELATIVE[dtype] * max(scale, torch.finfo(dtype).tiny), (seed, name, step)


class Called(TorchDispatchMode):
    """Names of the calls within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_where_cotangents_are_is_found_once():
    """On a card their rows would be uploaded again, and each pass would wait for that."""
    net = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)).eval()
    graph = specxai.linearize(net, torch.randn(1, 4), verify=False).graph
    output = max(graph.nodes)
    path = graph.between([graph.input], [output])
    products = backends.make("torch", graph).products([graph.input], [output], [], taps=path)
    Y, found = torch.randn(3, 2), [{}, {}]
    products.rmatmat(Y, passed=found[0].__setitem__)
    with Called() as called:
        products.rmatmat(Y, passed=found[1].__setitem__)
    assert not {"clamp_min", "lt", "ge", "_to_copy"} & set(called.names)
    assert found[0].keys() == found[1].keys() == set(path)
    assert all(torch.equal(found[0][step], found[1][step]) for step in path)
