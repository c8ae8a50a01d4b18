"""Ways of stages that are tried and remembered, with a clock that says what it is told: no card is asked."""

from __future__ import annotations

import doctest
import json
import multiprocessing
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from specxai.backends.cuda import tuned, ways
from specxai.backends.cuda.tuned import Choices
from specxai.kernels import split, tile


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


def chosen(told: Told, file=None, key: str = "stage", of=(A, B, C, FAR), **options) -> str:
    return Choices(told, file, **options).choose(key, iter(of), told.trial).name


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
    chosen(told, of=many)
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
    def counted_first():
        yield A
        raise AssertionError("the other tables were made")

    chosen(Told(a=1.0, b=2.0, c=3.0), tmp_path / "card.json")
    assert Choices(Told(), tmp_path / "card.json").choose("stage", counted_first(), lambda way: None) == A


def test_a_remembered_way_that_the_stage_lacks_leaves_the_counted_one(tmp_path):
    chosen(Told(a=3.0, b=1.0, c=2.0), tmp_path / "card.json")
    told = Told()
    assert chosen(told, tmp_path / "card.json", of=[A, C]) == "a"
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


def test_without_room_for_a_trial_nothing_is_remembered(tmp_path):
    def trial(way: Named) -> None:
        if way.name == "b":
            raise torch.OutOfMemoryError("no room")

    found = Choices(lambda work: 1.0, tmp_path / "card.json")
    with pytest.raises(torch.OutOfMemoryError):
        found.choose("stage", iter([A, B, C]), trial)
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


@pytest.mark.parametrize("module", [tuned, ways, split, tile])
def test_examples(module):
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0
