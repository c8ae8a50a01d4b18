"""The cuda engine in the interpreter: it runs every plan as the torch engine does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass

import pytest
import torch
from torch import nn

import specxai
from cuda_harness import on_cpu  # noqa: F401  a fixture
from random_nets import random_net
from specxai import backends
from specxai.backends.cuda import CudaEngine, backend, engine
from specxai.backends.cuda.stages import GatherWork
from specxai.backends.products import PlannedBackend
from specxai.plan import Planner, chains
from tolerances import assert_close
from waits import Waits


@pytest.fixture
def always_planned(monkeypatch):
    """Where all units live, whole values would be taken."""
    monkeypatch.setattr(backend, "is_mostly_live", lambda *map_: False)


def both(local, layer: str | None = None, columns: int = 5):
    """Products forward and back with a few columns."""
    J = local.jacobian if layer is None else local.split(layer).right
    g = torch.Generator().manual_seed(1)
    X, Y = (torch.randn(side, columns, generator=g).to(J.dtype) for side in J.shape[::-1])
    return J.matmat(X), J.rmatmat(Y)


def pair(net, x):
    captured = specxai.capture(net, x, verify=False)
    return [captured.linearize(x, backend=name, verify=False) for name in ("cuda", "torch")]


@pytest.mark.parametrize("seed", range(6))
def test_random_nets(seed, dtype):
    ours, oracle = pair(*random_net(seed, dtype))
    assert ours.backend == "cuda"
    assert ours.jacobian.other_engines() == []
    for layer in (None, oracle.layers[len(oracle.layers) // 2]):
        for got, want in zip(both(ours, layer), both(oracle, layer), strict=True):
            assert_close(got, want, factor=8)


class Activated(nn.Module):
    """x + f(GELU(x)) for a wide f: its first layer reads a copy with factors, of rows that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.GELU(), nn.Linear(20, 70), nn.GELU(), nn.Linear(70, 20))

    def forward(self, x):
        return x + self.wide(x)


@pytest.mark.usefixtures("always_planned")
@pytest.mark.parametrize("kind", [Activated, lambda: nn.Sequential(nn.Linear(20, 70), nn.GELU(), nn.Linear(70, 20))])
def test_matrices_in_place_of_a_wide_middle(monkeypatch, kind):
    monkeypatch.setattr(chains, "LEAST", 1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 20), kind()).eval()
    ours, oracle = (local.jacobian for local in pair(net, torch.randn(1, 3, 20)))
    X = torch.randn(60, 16)
    for J in (ours, oracle):
        J.expect(1000)
        assert J.flops_run < J.flops
    assert ours.other_engines() == []
    for product in ("matmat", "rmatmat"):
        assert_close(getattr(ours, product)(X), getattr(oracle, product)(X), factor=8)


torch.manual_seed(0)  # the weights decide how many units live
NETS = {
    # Overlapping windows: an input that wins twice is read twice.
    "pool": (nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 6, 3),
                           nn.ReLU(), nn.Flatten(), nn.Linear(6, 4)), (2, 6, 6)),
    "depthwise": (nn.Sequential(nn.Conv2d(2, 8, 3, 2, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
                                nn.ReLU6(), nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 8, 3, 2, groups=8), nn.Conv2d(8, 4, 1),
                                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), (2, 9, 9)),
    "groups": (nn.Sequential(nn.Conv2d(4, 12, 3, padding=2, dilation=2, groups=2), nn.ReLU(),
                             nn.ConvTranspose2d(12, 6, 3, 2, 1, groups=3), nn.ReLU(), nn.Flatten(),
                             nn.Linear(6 * 25, 3)), (4, 3, 3)),
    "one position": (nn.Sequential(nn.Flatten(), nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 300), nn.ReLU(),
                                   nn.Unflatten(1, (300, 1, 1)), nn.Conv2d(300, 5, 3, padding=1), nn.Flatten()),
                     (3, 2, 2)),
}


@pytest.mark.parametrize("name, columns", [("pool", 1), ("pool", 64), ("depthwise", 4), ("depthwise", 17),
                                           ("groups", 9), ("one position", 1), ("one position", 33)])
def test_stages(name, columns):
    torch.manual_seed(3)
    net, shape = NETS[name]
    ours, oracle = pair(net.eval(), torch.randn(1, *shape))
    for got, want in zip(both(ours, columns=columns), both(oracle, columns=columns), strict=True):
        assert_close(got, want, factor=8)
    again = both(ours, columns=columns)
    assert all(torch.equal(a, b) for a, b in zip(again, both(ours, columns=columns), strict=True))


@pytest.mark.parametrize("name", NETS)
def test_a_product_waits_for_nothing(name):
    """After the first, which makes tables."""
    net, shape = NETS[name]
    ours, _ = pair(net.eval(), torch.randn(1, *shape))
    both(ours)
    J = ours.jacobian
    X, Y = (torch.randn(side, 5) for side in J.shape[::-1])
    with Waits() as waits:
        J.matmat(X), J.rmatmat(Y), J.rough().matmat(X), J.rough().rmatmat(Y)
    assert waits.found == []


class Doubly(nn.Module):
    """A hidden value with two readers, one through a GELU: its cotangents add up."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.last = nn.Linear(6, 20), nn.Linear(20, 20), nn.Linear(20, 3)

    def forward(self, x):
        h = self.up(x)
        return self.last(nn.functional.gelu(self.down(nn.functional.gelu(h))) + h)


# A net, its input, and how many of its layers take the factors: those beside a residual sum.  Without one the layer's
# outputs take the place of the rows that were copied, which are then not there any more.
GELUS = {
    "MLP": (nn.Sequential(nn.Linear(6, 20), nn.GELU(), nn.Linear(20, 8), nn.SiLU(), nn.Linear(8, 3)), (5, 6), 0),
    "two readers": (Doubly(), (5, 6), 1),
    "block": (nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True), (6, 16), 1),
    "convolutions": (nn.Sequential(nn.Conv2d(2, 5, 3), nn.GELU(), nn.Conv2d(5, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 1)),
                     (2, 7, 7), 0),
}


@pytest.mark.usefixtures("always_planned")
@pytest.mark.parametrize("columns", [3, 33])
@pytest.mark.parametrize("name", GELUS)
def test_a_copy_with_factors_is_part_of_its_layer(name, columns):
    torch.manual_seed(3)
    net, shape, taken = GELUS[name]
    ours, oracle = pair(net.eval(), torch.randn(1, *shape))
    for got, want in zip(both(ours, columns=columns), both(oracle, columns=columns), strict=True):
        assert_close(got, want, factor=8)
    J = ours.jacobian
    kinds = [type(work).__name__ for work in J._products._work]
    copies = [stage for stage in Planner(ours.graph).plan([ours.graph.input], [max(ours.graph.nodes)], []).stages
              if type(stage).__name__ == "Sum"]
    assert kinds.count("Half") == 2 * taken
    assert kinds.count("SumWork") == len(copies) - taken
    assert (J.bytes_moved(columns) < oracle.jacobian.bytes_moved(columns)) == bool(taken)
    assert J.flops == oracle.jacobian.flops
    rough = J.rough().matmat(torch.eye(J.shape[1])[:, :columns])
    assert (rough - J.to_dense()[:, :columns]).norm() <= 1e-4 * rough.norm()


def test_explain_is_explain_on_torch():
    net, shape = NETS["pool"]
    torch.manual_seed(0)
    x = torch.randn(1, *shape)
    ours, oracle = (specxai.explain(net.eval(), x, "3", target=1, rank=4, backend=name) for name in ("cuda", "torch"))
    assert torch.allclose(ours.S, oracle.S, rtol=1e-5)
    assert torch.allclose(ours.alpha, oracle.alpha, rtol=1e-4, atol=1e-6)
    assert ours.backends == {"decomposition": "cuda", "targets": "cuda"}


def test_a_stage_beyond_the_indices_runs_on_torch_and_says_so(monkeypatch):
    net, shape = NETS["pool"]
    monkeypatch.setattr(engine, "INDICES", 400)
    ours, oracle = pair(net.eval(), torch.randn(1, *shape))
    for got, want in zip(both(ours), both(oracle), strict=True):
        assert_close(got, want, factor=8)
    left = ours.jacobian.other_engines()
    assert left
    assert all((name, "more than 32-bit indices reach" in why) == ("torch", True) for _, name, why in left)
    assert "on the torch engine: 3, 432 weights, more than" in ours.report()


@pytest.mark.usefixtures("always_planned")
def test_a_layer_beyond_the_indices_takes_no_factors(monkeypatch):
    """Its kernel would be the one that cannot index it."""
    net, shape, taken = GELUS["two readers"]
    monkeypatch.setattr(engine, "INDICES", 399)  # of the 400 weights that read the copy
    ours, oracle = pair(net.eval(), torch.randn(1, *shape))
    assert taken
    kinds = [type(work).__name__ for work in ours.jacobian._products._work]
    assert "Half" not in kinds
    assert kinds.count("Instead") == len(ours.jacobian.other_engines())
    for got, want in zip(both(ours), both(oracle), strict=True):
        assert_close(got, want, factor=8)


def test_costs_are_those_of_the_plan():
    net, shape = NETS["depthwise"]
    ours, oracle = pair(net.eval(), torch.randn(1, *shape))
    assert ours.jacobian.costs() == oracle.jacobian.costs()
    assert ours.jacobian.flops == oracle.jacobian.flops
    few, many = (ours.jacobian._products.product_bytes(k) for k in (3, 5))
    assert few < many


def table_bytes(part: object, seen: set[int]) -> int:
    """Bytes of the integer tables that a stage holds."""
    if isinstance(part, torch.Tensor):
        memory = part.untyped_storage()
        new = not part.is_floating_point() and memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        return memory.nbytes() if new else 0
    parts = vars(part).values() if is_dataclass(part) else part.values() if isinstance(part, dict) else part
    return sum(table_bytes(p, seen) for p in parts) if isinstance(parts, Iterable) and not isinstance(parts, str) else 0


@pytest.mark.parametrize("name", NETS)
def test_tables_are_as_large_as_stated(name):
    net, shape = NETS[name]
    local, _ = pair(net.eval(), torch.randn(1, *shape))
    weighted = [work for work in local.jacobian._products._work if hasattr(work, "_there")]
    assert weighted
    for work in weighted:
        stage = work._stage
        found = table_bytes([work._there, work._back, work._apart[0], stage.reads, stage.writes], set())
        assert found <= work.kept <= 4 * found + 4096, (type(work), found, work.kept)


def test_it_is_never_chosen_unasked():
    assert {name: ok for name, ok, _ in backends.describe()}["cuda"]
    assert backends.choose("auto", torch.device("cpu"), torch.float32) in ("native", "reference")
    net, x = random_net(0, torch.float32)
    assert specxai.linearize(net, x).backend != "cuda"


def test_rough_products_are_float64s_never():
    assert CudaEngine(torch.float32, torch.device("cpu")).mode(8, True, 0, []).precision == "bf16x3"
    assert CudaEngine(torch.float32, torch.device("cpu")).mode(8, False, 0, []).precision == "tf32x3"
    exact = CudaEngine(torch.float64, torch.device("cpu"))
    assert not exact.has_rough
    assert exact.mode(8, True, 0, []).precision == "fp64"


def test_kinds_of_stages():
    """Each kernel is reached."""
    kinds = set()
    for net, shape in NETS.values():
        local = pair(net.eval(), torch.randn(1, *shape))[0]
        products = local.jacobian._products
        kinds |= {type(work).__name__ for work in products._work}
    assert {"GatherWork", "DepthwiseWork", "PackedWork", "SumWork"} <= kinds


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("seed", range(4))
def test_full_precision_by_the_compiled_kernel(seed, dtype):
    """Where it is there, as it is here in emulation: every gather stage forward and back."""
    net, x = random_net(seed, dtype)
    oracle = specxai.capture(net, x, verify=False).linearize(x, backend="torch", verify=False)
    graph = oracle.graph
    planned = PlannedBackend(graph, CudaEngine(dtype, torch.device("cpu"), "fp32"))
    products = planned.products([graph.input], [max(graph.nodes)], [])
    gathers = [work for work in products._work if isinstance(work, GatherWork)]
    X, Y = (torch.randn(side, 5, dtype=dtype) for side in oracle.jacobian.shape[::-1])
    assert_close(products.matmat(X), oracle.jacobian.matmat(X), factor=8)
    assert_close(products.rmatmat(Y), oracle.jacobian.rmatmat(Y), factor=8)
    assert gathers
    assert all("_exact_back" in vars(work) and "_there" not in vars(work) for work in gathers), "Triton ran instead"


@pytest.mark.usefixtures("always_planned")
@pytest.mark.parametrize("kind", [nn.LayerNorm(40), nn.AvgPool1d(2)])
def test_sums_and_norms_beyond_the_indices_run_on_torch(monkeypatch, kind):
    monkeypatch.setattr(engine, "INDICES", 100)
    ours, oracle = pair(kind.eval(), torch.randn(1, 3, 40))
    for got, want in zip(both(ours), both(oracle), strict=True):
        assert_close(got, want, factor=8)
    assert [why for _, _, why in ours.jacobian.other_engines()] == ["120 units, more than 32-bit indices reach"]
