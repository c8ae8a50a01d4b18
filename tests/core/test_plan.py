"""Plans over live units are the reference, for any geometry, gates from all dead to all open, and any block width."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import specxai
from specxai import native
from specxai._vision import import_vision
from specxai.backends.native.depthwise import DepthwiseWork
from specxai.backends.native.gather import GatherWork
from specxai.backends.opaque import OpaqueTerms
from specxai.backends.products import WIDE
from tolerances import assert_close

pytestmark = pytest.mark.skipif(not native.available()[0], reason=f"no compiled kernels: {native.available()[1]}")
engines = pytest.mark.parametrize("engine", ["native", "torch"])


class Block(nn.Module):
    """A convolution of any kind, a norm, a gate, a pool, and what follows: a skip, a concatenation, or nothing."""

    def __init__(self, dims, channels, wide, kernel, stride, padding, dilation, groups, transposed, pool, end, slope,
                 shift) -> None:
        super().__init__()
        Conv = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
        self.conv = Conv(channels, wide, kernel, stride, padding, dilation=dilation, groups=groups)
        self.norm = getattr(nn, f"BatchNorm{dims}d")(wide)
        self.pool, self.end, self.slope, self.shift, self.dims = pool, end, slope, shift, dims
        self.last = nn.Linear(wide * (2 if end == "cat" else 1), 3)
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 1.5)
            self.norm.running_mean.normal_()

    def forward(self, x):
        y = F.leaky_relu(self.norm(self.conv(x)) + self.shift, self.slope)
        if self.pool:
            pool = getattr(F, f"{self.pool}_pool{self.dims}d")
            y = pool(y, 3, 2, 1)
        if self.end == "add":
            y = y + 2 * F.relu(y - 0.1)
        elif self.end == "cat":
            y = torch.cat([y, F.relu(-y)], 1)
        return self.last(y.movedim(1, -1)).flatten(1)


def runs(model, x) -> bool:
    try:
        return model(x).numel() > 0
    except RuntimeError:  # a kernel or a window that is larger than the image
        return False


@engines
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_geometry(engine, data):
    draw = data.draw
    dims, groups = draw(st.sampled_from([1, 2, 2, 2, 3])), draw(st.sampled_from([1, 1, 2, 4]))
    channels, wide = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 5))
    kernel, stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    padding = draw(st.integers(0, 2))
    size = 5 if dims == 3 else 8
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    torch.manual_seed(draw(st.integers(0, 999)))
    model = Block(dims, channels, wide, kernel, stride, padding, dilation, groups, draw(st.booleans()),
                  draw(st.sampled_from([None, "max", "avg"])), draw(st.sampled_from([None, "add", "cat"])),
                  draw(st.sampled_from([0.0, 0.0, 0.1])), draw(st.sampled_from([-9.0, -1.0, 0.0, 9.0])))
    model = model.eval().to(dtype)
    x = torch.randn(1, channels, *(size - i for i in range(dims)), dtype=dtype)
    assume(runs(model, x))
    captured = specxai.capture(model, x, verify=False)
    ours, wanted = (captured.linearize(x, backend=name) for name in (engine, "reference"))
    probes = draw(st.sampled_from([1, 2, 3, 7, 17, 64, 65, 150]))
    for layer in ("conv", ""):
        for part in ("right", "left", "bypass"):
            got, want = (getattr(local.split(layer), part) if layer else local.jacobian for local in (ours, wanted))
            assert got.is_zero == want.is_zero
            for a, b in ((got, want), (got.T, want.T)):
                X = torch.randn(b.shape[1], probes, dtype=dtype)
                assert_close(a @ X, b @ X, factor=4)


@pytest.mark.parametrize("backend", ["native", "torch", "auto"])
def test_one_column_through_what_has_no_stage(backend):
    """A column (n, 1) may have any stride along its second axis."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(33, 20), nn.ReLU(), nn.LayerNorm(20), nn.Linear(20, 35)).double().eval()
    x = torch.randn(1, 33, dtype=torch.float64)
    J, want = (specxai.linearize(model, x, backend=name).jacobian for name in (backend, "reference"))
    assert_close(J.to_dense(), want.to_dense())
    for probes in (1, 17):
        X = torch.randn(probes, 33, dtype=torch.float64).T
        assert_close(J @ X, want @ X)
    result = specxai.svd(J, rank=1, method="exact")
    assert float(result.residuals.max()) <= 1e-10 * float(result.S[0])


@engines
def test_bytes_never_fall_as_columns_are_added(engine):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(484, 5)).eval()
    x = torch.randn(1, 1, 28, 28)
    J = specxai.linearize(model, x, backend=engine).jacobian
    sizes = [J._products.product_bytes(columns) for columns in range(1, 65)]
    assert sizes == sorted(sizes)
    limited = specxai.linearize(model, x, backend=engine, max_memory=sizes[15]).jacobian
    assert limited.block_size == 16
    X = torch.randn(J.shape[1], 24)
    assert_close(limited @ X, J @ X, factor=2)


@engines
@pytest.mark.parametrize("probes", [16, 17, 20, 21, 50])
def test_columns_beyond_whole_vectors(engine, probes, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 64, 3)).eval().to(dtype)
    x = torch.randn(1, 8, 48, 48, dtype=dtype)
    ours, wanted = (specxai.linearize(model, x, backend=name).jacobian for name in (engine, "reference"))
    X, Y = (torch.randn(size, 64, dtype=dtype)[:, 3:3 + probes] for size in (x.numel(), ours.shape[0]))
    assert_close(ours @ X, wanted @ X, factor=2)
    assert_close(ours.T @ Y, wanted.T @ Y, factor=2)


def test_a_thousand_probes_on_any_number_of_threads(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 9, 3), nn.ReLU()).eval()
    model, x = model.to(dtype), torch.randn(1, 3, 13, 11, dtype=dtype)
    captured = specxai.capture(model, x)
    ours, wanted = (captured.linearize(x, backend=name).jacobian for name in ("native", "reference"))
    X, Y = torch.randn(ours.shape[1], 1000, dtype=dtype), torch.randn(ours.shape[0], 1000, dtype=dtype)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append((ours @ X, ours.T @ Y))
    torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert_close(found[0][0], wanted @ X, factor=2)
    assert_close(found[0][1], wanted.T @ Y, factor=2)


@engines
@pytest.mark.parametrize("alive", [0, 1])
def test_dead_gates_and_one_live_unit(engine, alive, dtype):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).eval().to(dtype)
    with torch.no_grad():
        model[0].bias.fill_(-100)
        model[0].weight[0, 0, 0, 0] = 1
    x = torch.zeros(1, 2, 4, 4, dtype=dtype)
    x[0, 0, 1, 1] = 1000.0 * alive
    captured = specxai.capture(model, x)
    ours, wanted = (captured.linearize(x, backend=name).jacobian for name in (engine, "reference"))
    assert [units for _, units, _ in ours.costs()] == ([int((model[:2](x) > 0).sum()), 5] if alive else [])
    assert_close(ours.to_dense(), wanted.to_dense())
    assert bool(ours.to_dense().any()) == bool(alive)


def test_few_columns_are_not_worth_a_plan():
    model, x = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 25)).eval(), torch.randn(1, 30)
    for name, narrow in (("auto", False), ("native", True), ("torch", True), ("reference", True)):
        J = specxai.linearize(model, x, backend=name).jacobian
        J @ torch.ones(30, 15)
        assert ("_products" in vars(J)) is narrow
        J @ torch.ones(30, 16)
        assert "_products" in vars(J)


@engines
def test_only_live_units_are_computed(engine):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3)).eval()
    x = torch.randn(1, 3, 8, 8)
    local = specxai.linearize(model, x, backend=engine)
    (_, first, work), (_, second, _) = local.jacobian.costs()
    hidden = model[:2](x)
    winners = F.max_pool2d(hidden, 2, return_indices=True)
    assert first == int((winners[0] > 0).sum())
    assert second == 6 * 2 * 2
    assert work < local.graph.nodes[local.captured.program.layer("0")[1]].flops / 3


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "resnet18", "densenet121", "mobilenet_v2"])
def test_a_plan_s_memory_is_known_before(name):
    """What is asked for is what the products take, and no stage of these nets falls back to whole values."""
    model = getattr(import_vision("torchvision.models"), name)(weights=None).eval()
    J = specxai.linearize(model, torch.randn(1, 3, 64, 64), backend="native").jacobian
    plan = J._products
    assert not any(isinstance(work, OpaqueTerms) for work in plan._work)
    assert sum(isinstance(work, (GatherWork, DepthwiseWork)) for work in plan._work) == len(J.costs())
    J.matmat(torch.randn(J.shape[1], 25))
    assert plan._arenas.idle[0].numel() == plan.arena_rows * WIDE  # of which what is not written takes no memory
    aside = max((composed.scratch(32) for composed in plan._composed), default=0)
    tables = plan.product_bytes(25) - 4 * (plan.arena_rows * 32 + 25 * sum(J.shape) + aside)
    kept = sum(work.kept for work in (plan._seed, *plan._work, plan._collect))
    assert tables == kept + plan._matrix_bytes
    assert kept > 0
    assert plan.product_bytes(18) == tables + 4 * (plan.arena_rows * 32 + 18 * sum(J.shape) + aside)


class Readers(nn.Module):
    """An image read by one convolution, by two, or by a sum as well."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        y = self.first(x)
        if self.kind == "two":
            y = y + F.relu(self.second(x))
        elif self.kind == "sum":
            y = y + x
        return F.relu(y).flatten(1)


@pytest.mark.parametrize(("kind", "channels", "direct"), [
    ("one", 3, True), ("one", 8, False), ("two", 3, False), ("sum", 3, False)])
def test_columns_are_read_where_they_are(kind, channels, direct, dtype):
    torch.manual_seed(0)
    model, x = Readers(kind, channels).eval().to(dtype), torch.randn(1, channels, 12, 9, dtype=dtype)
    ours, want = (specxai.linearize(model, x, backend=name).jacobian for name in ("native", "reference"))
    assert (ours._products.direct is not None) is direct
    for probes in (1, 3, 4, 16, 20, 32):
        wide, Y = (torch.randn(size, 40, dtype=dtype) for size in ours.shape[::-1])
        before = wide.clone()
        for X in (wide[:, 5:5 + probes], wide[:, 5:5 + probes].contiguous(), wide.T.contiguous().T[:, :probes]):
            assert_close(ours @ X, want @ X, factor=2)
        assert torch.equal(wide, before)
        assert_close(ours.T @ Y[:, :probes], want.T @ Y[:, :probes], factor=2)


def test_a_part_of_the_columns_is_read_where_it_is():
    """Units of the source that are dead, or that nobody reads, stay zero in the adjoint."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 2, stride=3), nn.ReLU(), nn.Flatten()).eval()
    x = torch.randn(1, 2, 8, 8)
    ours, want = (specxai.linearize(model, x, backend=name).jacobian for name in ("native", "reference"))
    assert ours._products.direct is not None
    dead = ~want.to_dense().any(0)
    assert 0 < int(dead.sum()) < len(dead)
    for probes in (16, 18):
        Y = torch.randn(ours.shape[0], probes)
        found = ours.T @ Y
        assert not found[dead].any()
        assert_close(found, want.T @ Y)
