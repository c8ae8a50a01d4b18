"""Stages in the ways that are tried, in the interpreter with a clock that says what it is told."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import specxai
from specxai.backends.cuda import CudaEngine, tuned
from specxai.backends.cuda.graphs import Graphs
from specxai.backends.cuda.stages import GatherWork, PackedWork
from specxai.backends.cuda.tuned import Choices
from specxai.backends.cuda.ways import Way
from specxai.backends.products import PlannedBackend
from specxai.backends.torch import TorchEngine
from specxai.kernels import split
from specxai.kernels.tile import tiles_for
from tolerances import assert_close

CPU = torch.device("cpu")


class Residual(nn.Module):
    """Convolutions of which one adds onto the stream, forward, and one in the adjoint; one position behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 20, 3, padding=1)
        self.inner = nn.Sequential(nn.Conv2d(20, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 20, 1))
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(20 * 9, 40), nn.ReLU(), nn.Linear(40, 3))

    def forward(self, x):
        h = self.first(x).relu()
        return self.last((h + self.inner(h)).relu())


class Ever:
    """A clock that runs the work and says that each run took `ratio` times what the one before did."""

    def __init__(self, ratio: float) -> None:
        self.ratio, self.made = ratio, 0

    def __call__(self, work) -> float:
        work()
        self.made += 1
        return self.ratio**self.made


def block() -> tuple[nn.Module, torch.Tensor]:
    """A layer that reads a GELU's output multiplies as it comes, where it adds onto the stream."""
    net = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True)
    return net, torch.randn(1, 4, 16)


def local_of(net: nn.Module, x: torch.Tensor):
    return specxai.capture(net.eval(), x, verify=False).linearize(x, backend="torch", verify=False)


@pytest.fixture
def local():
    torch.manual_seed(0)
    return local_of(Residual(), torch.randn(1, 2, 3, 3))


def products_of(graph, engine=None):
    engine = engine or CudaEngine(torch.float32, CPU)
    return PlannedBackend(graph, engine).products([graph.input], [max(graph.nodes)], [])


def both(products, columns: int = 4):
    g = torch.Generator().manual_seed(1)
    X, Y = (torch.randn(size, columns, generator=g).to(products.dtype) for size in (products._n, products._m))
    return products.matmat(X), products.rmatmat(Y)


def test_on_the_cpu_counts_decide():
    assert tuned.choices(CPU) is None


def test_a_stage_that_adds_is_applied_once(local):
    """Bit for bit what it is without a trial where the counted choice wins: forward, adjoint and again."""
    counted = both(products_of(local.graph))
    with tuned.using(CPU, Choices(Ever(1.0))) as found:
        ours = products_of(local.graph)
        weighted = [work for work in ours._work if isinstance(work, GatherWork | PackedWork)]
        assert any(work._stage.adds for work in weighted), "no stage of the net adds"
        assert any(work._stage.place.accumulate for work in weighted), "no adjoint of the net adds"
        for _ in range(2):
            assert all(torch.equal(got, want) for got, want in zip(both(ours), counted, strict=True))
    assert len(found.table()) == 2 * len(weighted)
    assert all(row["chosen"] == row["counted"] and len(row["seconds"]) > 1 for row in found.table())


@pytest.mark.parametrize(("net", "dtype"), [("residual", torch.float32), ("residual", torch.float64),
                                            ("block", torch.float32)])
def test_other_ways_give_the_same_product(net, dtype):
    """Each later way of a stage is said to be faster than those before: the last wins."""
    torch.manual_seed(0)
    model, x = (Residual(), torch.randn(1, 2, 3, 3)) if net == "residual" else block()
    local = local_of(model.to(dtype), x.to(dtype))
    wanted = both(products_of(local.graph, TorchEngine(dtype, CPU)))
    with tuned.using(CPU, Choices(Ever(0.9))) as found:
        ours = products_of(local.graph, CudaEngine(dtype, CPU))
        first = both(ours)
        for got, want in zip(first, wanted, strict=True):
            assert_close(got, want, factor=8)
        assert all(torch.equal(got, want) for got, want in zip(both(ours), first, strict=True))
    changed = [row for row in found.table() if row["chosen"] != row["counted"]]
    assert len(changed) == len(found.table()) > 0
    ways = {(row["counted"].split(",")[0], row["chosen"].split(",")[0]) for row in changed}
    assert ("inputs", "outputs") in ways or ("outputs", "inputs") in ways, ways
    assert any(row["stage"].startswith("scaled gather") for row in changed) == (net == "block")


def test_off_means_off(local, monkeypatch):
    counted, clock = both(products_of(local.graph)), Ever(0.9)
    monkeypatch.setenv("SPECXAI_TUNE", "0")
    with tuned.using(CPU, Choices(clock)):
        got = both(products_of(local.graph))
    assert clock.made == 0
    assert all(torch.equal(a, b) for a, b in zip(got, counted, strict=True))
    monkeypatch.setenv("SPECXAI_TUNE", "yes")
    with pytest.raises(ValueError, match="SPECXAI_TUNE is 'yes'; set it to 0"):
        tuned.choices(CPU)


def test_the_first_pass_tries_and_the_captured_one_does_not(local):
    class Captured(CudaEngine):
        def graphs(self) -> Graphs:
            def capture(made, block):
                result = made(block)
                return SimpleNamespace(replay=lambda: result.copy_(made(block))), result

            self.made = Graphs(CPU, capture)
            return self.made

    engine, tried_in_capture = Captured(torch.float32, CPU), []
    clock = Ever(0.9)

    def timed(work) -> float:
        tried_in_capture.append(engine.made.capturing)
        return clock(work)

    with tuned.using(CPU, Choices(timed)) as found:
        ours = products_of(local.graph, engine)
        passes = [both(ours)]
        after_first = clock.made
        found._found.clear()  # an operator keeps its ways: a captured pass and one that is not run alike
        passes += [both(ours) for _ in range(2)]
    assert after_first > 0
    assert clock.made == after_first
    assert not any(tried_in_capture)
    assert all(torch.equal(got, want) for later in passes[1:] for got, want in zip(later, passes[0], strict=True))


def test_a_remembered_way_that_does_not_run_gives_way(local, monkeypatch):
    wanted, run = both(products_of(local.graph)), Way.run
    found = Choices(Ever(0.9))
    with tuned.using(CPU, found):
        both(products_of(local.graph))
        changed = {row["chosen"] for row in found.table()}

        def refuse(way, *arguments) -> None:
            if way.name in changed:
                raise RuntimeError("out of resource: shared memory")
            run(way, *arguments)

        monkeypatch.setattr(Way, "run", refuse)
        with pytest.warns(RuntimeWarning, match="does not run and the counted one does instead: .*out of resource"):
            got = both(products_of(local.graph))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_without_room_for_a_trial_the_counted_way_runs(local, monkeypatch):
    wanted = both(products_of(local.graph))

    def full(way: Way) -> Way:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Way, "apart", full)
    with tuned.using(CPU, Choices(Ever(0.9))) as found:
        ours = products_of(local.graph)
        assert all(torch.equal(got, want) for got, want in zip(both(ours), wanted, strict=True))
    assert found.table() == []


def test_trials_hold_what_is_stated(local, monkeypatch):
    """The block that ways are tried into, beside the arena; what sums in parts take is stated with and without."""
    apart, run, trials, largest = Way.apart, Way.run, [], []

    def marked(way: Way) -> Way:
        trials.append(apart(way))
        return trials[-1]

    def watched(way: Way, block, out, *rest) -> None:
        if any(way is one for one in trials):
            largest.append(out.untyped_storage().nbytes())
        run(way, block, out, *rest)

    monkeypatch.setattr(Way, "apart", marked)
    monkeypatch.setattr(Way, "run", watched)
    monkeypatch.setattr(split, "most_part_rows", lambda: 0)
    stated = products_of(local.graph).product_bytes(4)
    with tuned.using(CPU, Choices(Ever(1.0))):
        ours = products_of(local.graph)
        both(ours)
        most = 4 * max(work.scratch(4) for work in ours._work)
        assert most / 2 <= max(largest) <= most
        assert ours.product_bytes(4) >= stated + most


@pytest.mark.parametrize("precision", ["tf32x3", "bf16x3", "fp32", "fp64"])
@pytest.mark.parametrize("probes", [4, 16, 64, 200])
def test_tiles_are_few_and_none_twice(precision, probes):
    for outputs in (5, 40, 64, 300, 512):
        tiles = tiles_for(outputs, probes, precision)
        assert len(set(tiles)) == len(tiles) <= 5
        assert all(tile.probes >= 16 or not tile.probes_first for tile in tiles)


def test_an_operator_with_ways_goes_when_it_is_no_longer_held(local):
    """By its references alone: tables of a card do not wait for the collector of cycles."""
    with tuned.using(CPU, Choices(Ever(0.9))):
        ours = products_of(local.graph)
        both(ours)
        held = [weakref.ref(work) for work in ours._work if isinstance(work, GatherWork | PackedWork)]
        gc.disable()
        try:
            del ours
            assert [ref() for ref in held] == [None] * len(held)
        finally:
            gc.enable()
