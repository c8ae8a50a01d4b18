"""The framework of the experiments, on a tiny one: resuming, determinism, files whole or not there, the page."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from specxai.cli import main
from specxai.experiments import EXPERIMENTS, Progress, Study, load, require
from specxai.experiments.steps import read_step, write_step

TINY = '''
"""A tiny experiment that says which steps it runs, and kills itself where it is told."""
import os, signal, sys
import numpy as np, torch
from matplotlib.figure import Figure

SUMMARY = "two steps"
OPTIONS = ("epochs",)

def first(study, log):
    log.append("first")
    return {"x": torch.randn(5, generator=study.generator()), "global": torch.rand(2), "names": ["a", "b"]}

def second(x, log):
    log.append("second")
    return {"sum": float(x.sum()), "array": np.random.rand(3), "nested": {"w": x * 2}}

def run(study, log=None, kill=False):
    log = [] if log is None else log
    study.expect(2)
    a = study.step("first", lambda: first(study, log))
    if kill:
        os.kill(os.getpid(), kill)
    b = study.step("second", second, a["x"], log)
    study.text("# Heading\\nA **bold** word & `code`.\\n\\n- one\\n  goes on\\n- two")
    study.number("parts/sum", b["sum"], interval=(b["sum"] - 1, b["sum"] + 1), note="<of five>", paper="none")
    study.number("parts/array", b["array"])
    study.number("global", a["global"][0])
    figure = Figure()
    figure.subplots().plot(a["x"])
    study.figure("line", figure, "a line < `code`")
    study.table("rows", [{"name": "a", "value": 1 / 3}], "a table")
    study.page3d("thing", "<canvas></canvas><script>1</script>", "an element")
'''


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The experiment as a module that the registry knows as "tiny"."""
    (tmp_path / "tiny_experiment.py").write_text(TINY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(EXPERIMENTS, "tiny", "tiny_experiment")
    yield load("tiny")
    sys.modules.pop("tiny_experiment", None)


def study(out: Path, **changed) -> Study:
    return Study(out, "tiny", **{"progress": Progress(False), **changed})


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tiny, tmp_path):
    pages = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        s = study(tmp_path / name, seed=seed)
        tiny.run(s)
        s.finish("summary")
        pages[name] = {file: (tmp_path / name / file).read_bytes() for file in files(tmp_path / name)
                       if file != "run.json"}
    assert pages["a"] == pages["b"]
    assert pages["a"]["numbers.json"] != pages["c"]["numbers.json"]
    assert {"index.html", "line.png", "line.svg", "numbers.json"} < set(pages["a"])
    assert not re.search("second|version|202", pages["a"]["numbers.json"].decode())  # neither times nor versions


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_resumes_and_leaves_no_half_written_file(tiny, tmp_path, number):
    code = (f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import tiny_experiment as t\n"
            f"from specxai.experiments import Study\n"
            f"t.run(Study({str(tmp_path / 'out')!r}, 'tiny'), kill={int(number)})")
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -number
    assert [name.partition("-")[0] for name in files(tmp_path / "out")] == ["steps/first"]
    log = []
    resumed = study(tmp_path / "out")
    tiny.run(resumed, log)
    resumed.finish()
    assert log == ["second"]
    whole = study(tmp_path / "whole")
    tiny.run(whole, log)
    whole.finish()
    assert log == ["second", "first", "second"]
    for name in ("numbers.json", "index.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_folder_that_cannot_be_written_to_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file is a file, not a folder; give another folder with --out"):
        study(tmp_path / "file" / "out")
    (tmp_path / "out" / "index.html").mkdir(parents=True)
    with pytest.raises(OSError, match="a folder has the name of index"):
        study(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["index.html"]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    s = study(tmp_path)
    with pytest.raises(TypeError, match=r"step-\w+.safetensors/thing is object; a step can keep tensors"):
        s.step("step", lambda: {"thing": object()})
    with pytest.raises(TypeError, match="returned list, not a dict"):
        s.step("list", lambda: [1])
    assert files(tmp_path) == []


@pytest.mark.parametrize("changed", [{"quick": True}, {"seed": 1}, {"options": {"epochs": 2}}, {"fresh": True}])
def test_a_step_is_done_again_where_it_would_differ(tiny, tmp_path, changed):
    log = []
    tiny.run(study(tmp_path), log)
    tiny.run(study(tmp_path), log)
    assert log == ["first", "second"]
    tiny.run(study(tmp_path, **changed), log)
    assert log == ["first", "second"] * 2


def test_a_step_is_done_again_after_another_one_changed(tmp_path):
    def two(version: str, width: int) -> list[str]:
        log, s = [], study(tmp_path)
        s.step("one", lambda n: log.append("one") or {"n": n}, width, version=version)
        s.step("two", lambda: log.append("two") or {})
        return log

    assert [two("", 1), two("", 1), two("b", 1), two("b", 2), two("", 1)] == [
        ["one", "two"], [], ["one", "two"], ["one", "two"], []]


def test_an_option_that_is_a_file_counts_with_its_content(tmp_path):
    weights, log = tmp_path / "w.pt", []
    for content in ("a", "a", "bb"):
        if not weights.exists() or weights.read_text() != content:
            weights.write_text(content)
        study(tmp_path / "out", options={"weights": str(weights)}).step("one", lambda: log.append(1) or {})
    assert len(log) == 2


def test_steps_do_not_depend_on_which_were_read_nor_touch_the_global_generators(tiny, tmp_path):
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    tiny.run(study(tmp_path / "a"))
    assert (torch.rand(1), np.random.rand()) == expected
    (first,) = (tmp_path / "a" / "steps").glob("second-*")
    tiny.run(study(tmp_path / "b"))
    next((tmp_path / "b" / "steps").glob("second-*")).unlink()
    tiny.run(study(tmp_path / "b"))
    (again,) = (tmp_path / "b" / "steps").glob("second-*")
    assert first.read_bytes() == again.read_bytes()


def test_what_a_step_keeps_comes_back_as_it_was(tmp_path):
    shared = torch.arange(6.0)
    value = {"t": shared[::2], "same": shared, "bf": torch.ones(2, dtype=torch.bfloat16), "empty": torch.zeros(0, 3),
             "scalar": torch.tensor(2.5, dtype=torch.float64), "a": np.arange(3, dtype=np.int16), "n": 0.1 + 0.2,
             "i": 10**12, "s": "größe", "l": [1, [None, True]], "d": {"e": {"t": torch.eye(2)}}}
    write_step(tmp_path / "x.safetensors", value)
    back = read_step(tmp_path / "x.safetensors")
    assert list(back) == list(value)
    for key in ("t", "same", "bf", "empty", "scalar"):
        assert back[key].dtype == value[key].dtype
        assert torch.equal(back[key], value[key])
    assert isinstance(back["a"], np.ndarray)
    assert back["a"].dtype == np.int16
    assert {k: back[k] for k in "nisl"} == {k: value[k] for k in "nisl"}
    assert torch.equal(back["d"]["e"]["t"], torch.eye(2))


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b"", lambda b: b"\xff" * 40, lambda b: b[:30]])
def test_a_damaged_step_is_done_again(tmp_path, damage):
    study(tmp_path).step("one", lambda: {"x": torch.ones(3)})
    (path,) = (tmp_path / "steps").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert read_step(path) is None
    assert study(tmp_path).step("one", lambda: {"x": torch.ones(3)})["x"].tolist() == [1, 1, 1]


def test_numbers_are_nested_and_say_what_they_are(tmp_path):
    s = study(tmp_path)
    s.number("test/r2", torch.tensor(0.98765432), interval=(0.98, 0.99), note="of 100 shapes", paper="good accuracy")
    s.number("test/values", np.array([1 / 3, 2]))
    s.number("missing", None, note="no such shape")
    s.number("count", 7)
    s.finish()
    assert json.loads((tmp_path / "numbers.json").read_text()) == {
        "test": {"r2": {"value": 0.987654, "interval": [0.98, 0.99], "note": "of 100 shapes", "paper": "good accuracy"},
                 "values": {"value": [0.333333, 2.0]}},
        "missing": {"value": None, "note": "no such shape"}, "count": {"value": 7}}
    assert s.lines() == ["test/r2 = 0.9877 [0.98, 0.99]", "missing = not defined", "count = 7"]


@pytest.mark.parametrize("path, value, cause", [
    ("a", float("nan"), "a is nan, no finite number"), ("a", [1.0, float("inf")], "a is inf"),
    ("b", 1, "is there already"), ("b/c", 1, "'b' is a number already"), ("tables/x", 1, "its name is taken"),
])
def test_numbers_that_cannot_be_reported(tmp_path, path, value, cause):
    s = study(tmp_path)
    s.number("b", 1)
    with pytest.raises(ValueError, match=cause):
        s.number(path, value)


def test_the_page_is_self_contained_and_escapes(tiny, tmp_path):
    s = study(tmp_path, options={"epochs": 3})
    tiny.run(s)
    html = s.finish("sum < all").read_text("utf-8")
    for word in ("sum &lt; all", "<h2>Heading</h2>", "<b>bold</b> word &amp; <code>code</code>", "&lt;of five&gt;",
                 "<li>one goes on</li><li>two</li>", "a line &lt; <code>code</code>",
                 "<canvas></canvas><script>1</script>", "a table", "0.3333", "parts/sum", "epochs 3", "line.svg"):
        assert word in html, word
    loads = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", html)
    assert loads
    assert all(target.startswith(("data:", "#")) for target in loads)


@pytest.mark.parametrize("html", ['<script src="https://cdn/x.js"></script>', "<script>import a from 'https://x'</script>",
                                  '<link href="//x/y.css">', "<style>@import url(x)</style>"])
def test_an_element_that_loads_something_is_refused(tmp_path, html):
    with pytest.raises(ValueError, match="self-contained"):
        study(tmp_path).page3d("x", html, "")


def test_names_are_file_names_and_used_once(tmp_path):
    s = study(tmp_path)
    for bad in ("a/b", "", "a b"):
        with pytest.raises(ValueError, match="no file name"):
            s.figure(bad, Figure(), "")
        with pytest.raises(ValueError, match="no file name"):
            s.step(bad, dict)
    s.table("t", [], "")
    with pytest.raises(ValueError, match="on the page already"):
        s.figure("t", Figure(), "")


def test_pyplot_figures_are_closed(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    before = plt.get_fignums()
    study(tmp_path).figure("f", plt.figure(), "")
    assert plt.get_fignums() == before


def test_generators_differ_by_offset_and_are_fixed_by_the_seed(tmp_path):
    draws = [torch.rand(3, generator=study(tmp_path, seed=seed).generator(offset)).tolist()
             for seed, offset in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert draws[0] == draws[1]
    assert len({tuple(d) for d in draws}) == 3


def test_a_sub_study_lies_inside(tmp_path):
    sub = study(tmp_path, seed=4, quick=True).sub("inner", {"epochs": 1})
    assert (sub.out, sub.name, sub.seed, sub.quick, sub.options) == (tmp_path / "inner", "inner", 4, True,
                                                                     {"epochs": 1})


def test_a_missing_package_names_the_extra():
    with pytest.raises(ImportError, match=r"needs Captum, which .*: pip install 'specxai\[paper\]'"):
        require("no_such_module_at_all", "Captum")


def test_an_unknown_experiment():
    with pytest.raises(ValueError, match="no experiment is named 'circles'; there are imagenet, cars"):
        load("circles")


# ---- the command


@pytest.fixture
def only_tiny(tiny, monkeypatch):
    """The command's "squares" is the tiny experiment, and there is no other."""
    monkeypatch.setattr("specxai.cli.reproduce.EXPERIMENTS", {"squares": "tiny_experiment"})
    monkeypatch.setitem(EXPERIMENTS, "squares", "tiny_experiment")
    return tiny


def test_the_command_prints_numbers_with_intervals(only_tiny, tmp_path, capsys):
    assert main(["reproduce", "squares", "--out", str(tmp_path / "s"), "--seed", "5", "--epochs", "2"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"parts/sum = -?[\d.]+ \[-?[\d.]+, -?[\d.]+\]", shown)
    stored = json.loads((tmp_path / "s" / "run.json").read_text())
    assert (stored["seed"], stored["options"], stored["quick"]) == (5, {"epochs": 2}, False)
    assert "torch" in stored["versions"]


def test_all_links_every_page(only_tiny, tmp_path, capsys):
    assert main(["reproduce", "all", "--out", str(tmp_path / "all"), "--quick"]) == 0
    html = (tmp_path / "all" / "index.html").read_text()
    assert 'href="squares/index.html"' in html
    assert "parts/sum = " in html
    assert (tmp_path / "all" / "squares" / "numbers.json").is_file()
    assert "all pages:" in capsys.readouterr().out


def test_a_flag_that_the_experiment_does_not_read(only_tiny, tmp_path, capsys):
    assert main(["reproduce", "squares", "--out", str(tmp_path / "s"), "--weights", "DEFAULT"]) == 2
    assert "--weights means nothing to squares" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_package_that_is_missing_is_found_before_the_work(only_tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(only_tiny, "REQUIRES", ("no_such_module_at_all",), raising=False)
    assert main(["reproduce", "squares", "--out", str(tmp_path / "s")]) == 2
    assert "pip install 'specxai[paper]'" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
