"""Ways of stages that are tried and remembered, with a clock that says what it is told: no card is asked."""

from __future__ import annotations

import json
import multiprocessing
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Named:
    name: str
    cost: float = 1.0


A, B, C, FAR = Named("a", 1.0), Named("b", 1.9), Named("c", 1.5), Named("far", 2.1)


class Told:
    """A clock that says of each way what it was told to; and what was tried."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.tried, self.timed = seconds, [], []

    def __call__(self, work) -> float:
        work()
        self.timed.append(self.tried[-1])
        return self.seconds[self.tried[-1]]

    def trial(self, way: Named) -> None:
        self.tried.append(way.name)


def chosen(told: Told, file=None, key: str = "stage", ways=(A, B, C, FAR), **options) -> str:
    return Choices(told, file, **options).choose(key, iter(ways), told.trial).name


def test_the_fastest_of_those_that_counts_allow():
    told = Told(a=3.0, b=1.0, c=2.0, far=0.5)
    assert chosen(told) == "b"
    assert told.tried == ["a"] * 4 + ["c"] * 4 + ["b"] * 4, "once to compile, then three times, by counted cost"
    assert told.timed == ["a"] * 3 + ["c"] * 3 + ["b"] * 3


def test_the_median_of_three():
    times = iter([1.0, 1.0, 9.0, 0.1, 5.0, 5.0])
    found = Choices(lambda work: next(times))
    assert found.choose("stage", iter([A, B]), lambda way: None) == A
    assert found.table()[0]["seconds"] == {"a": 1.0, "b": 5.0}


def test_the_counted_choice_stays_within_the_noise():
    assert chosen(Told(a=1.0, b=0.98, c=2.0)) == "a"
    assert chosen(Told(a=1.0, b=0.96, c=2.0)) == "b"


def test_no_more_than_a_few_are_tried():
    many = [Named(str(k), 1 + k / 100) for k in range(20)]
    told = Told(**{way.name: 1.0 for way in many})
    chosen(told, ways=many)
    assert len(set(told.tried)) == tuned.MOST


def test_what_takes_no_time_is_not_tried():
    told = Told(a=3.0, b=1.0, c=2.0)
    assert chosen(told, least=1.1) == "a"
    assert told.tried == []
    assert chosen(told, least=1.0) == "b"


def test_a_choice_is_remembered_in_the_process_and_in_a_file(tmp_path):
    file, told = tmp_path / "deep/tuned/card.json", Told(a=3.0, b=1.0, c=2.0)
    found = Choices(told, file)
    for _ in range(2):
        assert found.choose("stage", iter([A, B, C]), told.trial) == B
    assert len(told.tried) == 12, "measured again"
    later = Told()
    assert chosen(later, file) == "b"
    assert later.tried == []
    assert chosen(Told(a=1.0, b=2.0, c=2.0), file, anew=True) == "a"
    assert chosen(Told(), file) == "a", "what was measured anew replaces"
    assert json.loads(file.read_text())["choices"]["stage"]["seconds"] == {"a": 1.0, "b": 2.0, "c": 2.0}


def test_only_what_is_needed_is_made_of_a_remembered_choice(tmp_path):
    def ways():
        yield A
        raise AssertionError("the other tables were made")

    chosen(Told(a=1.0, b=2.0, c=3.0), tmp_path / "card.json")
    assert Choices(Told(), tmp_path / "card.json").choose("stage", ways(), lambda way: None) == A


def test_a_remembered_way_that_the_stage_lacks_leaves_the_counted_one(tmp_path):
    chosen(Told(a=3.0, b=1.0, c=2.0), tmp_path / "card.json")
    told = Told()
    assert chosen(told, tmp_path / "card.json", ways=[A, C]) == "a"
    assert told.tried == []


RECORD = {"chosen": "a", "counted": "a", "seconds": {"a": 1.0}, "failed": {}}
DAMAGED = {
    "empty": b"", "cut off": b'{"format": 1, "choices": {"stage": {"cho', "a list": b"[]", "no text": b"\xff\xfe\x00",
    "another format": b'{"format": 2, "choices": {}}', "no choices": b'{"format": 1}', "deep": b"[" * 100_000,
    "a string": b'{"format": 1, "choices": {"stage": "a"}}',
    "a field short": json.dumps({"format": 1, "choices": {"stage": {"chosen": "a"}}}).encode(),
    "no time": json.dumps({"format": 1, "choices": {"stage": RECORD | {"seconds": {"a": float("nan")}}}}).encode(),
    "a time of text": json.dumps({"format": 1, "choices": {"stage": RECORD | {"seconds": {"a": "1"}}}}).encode(),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_said_once_and_replaced(tmp_path, text):
    file = tmp_path / "card.json"
    file.write_bytes(text)
    with pytest.warns(RuntimeWarning, match="card.json is not read, and what it held is measured anew") as said:
        assert chosen(Told(a=3.0, b=1.0, c=2.0), file) == "b"
    assert len(said) == 1
    assert len(str(said[0].message).splitlines()) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen(Told(), file) == "b"


def test_an_intact_file_is_believed(tmp_path):
    """So that the damage is what the test above refuses."""
    file = tmp_path / "card.json"
    file.write_text(json.dumps({"format": 1, "choices": {"stage": RECORD | {"chosen": "c"}}}))
    assert chosen(Told(), file) == "c"


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "MOST_BYTES", 100)
    file = tmp_path / "card.json"
    file.write_text(json.dumps({"format": 1, "choices": {"stage": RECORD}}) + " " * 100)
    with pytest.warns(RuntimeWarning, match="more than 100 bytes"):
        assert chosen(Told(a=1.0, b=2.0, c=2.0), file) == "a"


def test_the_oldest_choices_of_a_file_go(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "KEPT", 3)
    for key in "pqrst":
        chosen(Told(a=1.0, b=2.0, c=3.0), tmp_path / "card.json", key)
    assert list(json.loads((tmp_path / "card.json").read_text())["choices"]) == ["r", "s", "t"]


def test_where_nothing_can_be_written_the_choice_stands(tmp_path):
    told = Told(a=3.0, b=1.0, c=2.0)
    found = Choices(told, tmp_path / "there/card.json")
    (tmp_path / "there").write_text("a file")
    with pytest.warns(RuntimeWarning, match="what was measured is not remembered: .*there is a file") as said:
        assert [found.choose(key, iter([A, B]), told.trial).name for key in "pq"] == ["b", "b"]
    assert len([one for one in said if "not remembered" in str(one.message)]) == 1


def test_two_processes_that_write_lose_no_file(tmp_path):
    file, each = tmp_path / "card.json", 25

    def write(name: str) -> None:
        for k in range(each):
            chosen(Told(a=1.0, b=2.0, c=3.0), file, f"{name} {k}")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = multiprocessing.get_context("fork")
        at_once = [start.Process(target=write, args=(name,)) for name in "pq"]
        for process in at_once:
            process.start()
        while any(process.is_alive() for process in at_once):
            tuned._read(file)  # raises where it is damaged
        for process in at_once:
            process.join()
        assert [process.exitcode for process in at_once] == [0, 0]
        found = tuned._read(file)
    assert {f"{name} {each - 1}" for name in "pq"} & found.keys(), "the last to write is there"
    assert list(tmp_path.iterdir()) == [file], "drafts are left"


def test_writers_that_take_turns_keep_each_others(tmp_path):
    told = Told(a=1.0, b=2.0, c=3.0)
    first, second = (Choices(told, tmp_path / "card.json") for _ in range(2))
    for found, key in ((first, "p"), (second, "q"), (first, "r")):
        found.choose(key, iter([A, B]), told.trial)
    assert tuned._read(tmp_path / "card.json").keys() == {"p", "q", "r"}


def failing(told: Told, *names: str):
    def trial(way: Named) -> None:
        if way.name in names:
            raise RuntimeError(f"{way.name}: out of resource\nshared memory")
        told.trial(way)

    return trial


def test_a_way_that_fails_is_left_out_and_noted(tmp_path):
    told = Told(a=3.0, b=1.0, c=2.0)
    found = Choices(told, tmp_path / "card.json")
    assert found.choose("stage", iter([A, B, C]), failing(told, "b")) == C
    (row,) = found.table()
    assert row["failed"] == {"b": "RuntimeError: b: out of resource"}
    assert row["gain"] == 1.5
    assert found.choose("other", iter([A, B, C]), failing(told, "a")) == B
    assert found.table()[1]["gain"] is None


def test_where_all_fail_the_error_is_the_counted_choices(tmp_path):
    found = Choices(Told(), tmp_path / "card.json")
    with pytest.raises(RuntimeError, match=r"^a: out of resource"):
        found.choose("stage", iter([A, B, C]), failing(Told(), "a", "b", "c"))
    assert found.table() == []
    assert not (tmp_path / "card.json").exists()


def test_nothing_is_tried_in_a_capture():
    told, busy = Told(a=3.0, b=1.0, c=2.0), [True]
    found = Choices(told, capturing=lambda: busy[0])
    assert found.choose("stage", iter([A, B, C]), told.trial) == A
    assert (told.tried, found.table()) == ([], [])
    busy[0] = False
    assert found.choose("stage", iter([A, B, C]), told.trial) == B
    busy[0] = True
    assert found.choose("stage", iter([A, B, C]), told.trial) == B, "what is known runs there too"


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


def test_the_file_of_a_card(monkeypatch, tmp_path):
    facts = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(tuned, "_by_device", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = tuned.choices(torch.device("cuda"))
    assert found is tuned.choices(torch.device("cuda:1"))
    assert found is not tuned.choices(torch.device("cuda:0"))
    assert found._file == tmp_path / f"specxai/tuned/NVIDIA-H100-80GB-HBM3-9.0-{tuned.kernels_version()}.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tuned.cache_folder() == tmp_path / "home/.cache/specxai/tuned"


def test_the_version_follows_the_kernels_text(monkeypatch, tmp_path):
    (tmp_path / "one.py").write_text("a = 1\n")
    monkeypatch.setattr(tuned.resources, "files", lambda package: tmp_path)
    before = tuned.kernels_version()
    assert before == tuned.kernels_version()
    (tmp_path / "one.py").write_text("a = 2\n")
    assert tuned.kernels_version() != before


def test_events_are_around_the_work_alone(monkeypatch):
    """Behind a wait of the device, so that the host's launches are not what is timed."""
    said = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            said.append("record")

        def synchronize(self) -> None:
            said.append("synchronize")

        def elapsed_time(self, end) -> float:
            return 5.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: said.append("sleep"))
    assert tuned.Events(torch.device("cuda:0"))(lambda: said.append("work")) == 0.005
    assert said == ["sleep", "record", "work", "record", "synchronize"]


@pytest.mark.parametrize("precision", ["tf32x3", "bf16x3", "fp32", "fp64"])
@pytest.mark.parametrize("probes", [4, 16, 64, 200])
def test_tiles_are_few_and_none_twice(precision, probes):
    for outputs in (5, 40, 64, 300, 512):
        tiles = tiles_for(outputs, probes, precision)
        assert len(set(tiles)) == len(tiles) <= 5
        assert all(tile.probes >= 16 or not tile.probes_first for tile in tiles)
