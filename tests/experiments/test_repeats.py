"""Real systems in processes of their own, tiny: the same seed repeats itself, and a run that is killed goes on."""

from __future__ import annotations

import json
import multiprocessing
import signal
from pathlib import Path

import pytest
from safetensors.torch import load

from specxai.experiments import EXPERIMENTS

TINY = {
    "squares": {"epochs": 3, "train": 64, "test": 5, "batch": 16, "size": 16, "side": 8, "widths": (24, 16, 8)},
    "turbines": {"count": 4, "train": 120, "validation": 12, "test": 12, "epochs": 2, "head_epochs": 2},
}


# Moments at which a run kills itself: the how-manieth event of Python's audit, of what kind, at which path.
MOMENTS = {
    "before anything": (1, "tempfile.mkdtemp", r""),
    "in a write": (2, "open", r"/steps/\.part-.*\.safetensors$"),
    "before a result has its name": (2, "os.rename", r"/steps/\.part-.*\.safetensors$"),
    "in the figures": (2, "os.rename", r"\.png$"),
}
SECONDS = 120  # until a run must have ended

context = multiprocessing.get_context("forkserver")  # a server that has imported everything, and does nothing else
context.set_forkserver_preload(["specxai.experiments", "matplotlib.figure", *(EXPERIMENTS[name] for name in TINY)])


# As text: another process cannot import a test.
WHOLE_RUN = """
import os, re, signal, sys
from pathlib import Path
import torch
from specxai.experiments import Progress, Study, load

def kill_at(event, args):
    global left
    if event == kind and re.search(path, str(args[0])):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

left, kind, path = moment
sys.addaudithook(kill_at)
torch.set_num_threads(1)
study = Study(Path(out), name, quick=True, seed=5, progress=Progress(False))
load(name).run(study, **settings)
study.finish("summary")
"""


def finished(name: str, out: Path, moment: tuple[int, str, str] = (0, "", "")) -> int | None:
    """The exit code of a run, which ends by itself or kills itself at a moment."""
    given = {"name": name, "out": str(out), "settings": TINY[name], "moment": moment}
    process = context.Process(target=exec, args=(WHOLE_RUN, given))
    process.start()
    process.join(SECONDS)
    return process.exitcode


def written(out: Path) -> dict[str, bytes]:
    """Every file by its place, but for the times in run.json."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*"))
            if path.is_file() and path.name != "run.json"}


def check_whole(out: Path) -> None:
    """Every file that has its final name is complete."""
    for path in out.rglob("*"):
        if not path.is_file() or any(part.startswith(".part-") for part in path.parts):
            continue
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            load(data)
        elif path.suffix == ".json":
            json.loads(data)
        else:
            end = {".png": b"IEND\xaeB`\x82", ".svg": b"</svg>", ".html": b"</html>"}[path.suffix]
            assert data.rstrip().endswith(end), path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a whole run of a system, made once."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "whole"
            assert finished(name, made[name]) == 0
        return made[name]

    return of


@pytest.mark.parametrize("name", TINY)
def test_the_same_seed_gives_the_same_files_in_another_process(name, runs, tmp_path):
    assert finished(name, tmp_path / "again") == 0
    one, other = written(runs(name)), written(tmp_path / "again")
    assert list(one) == list(other)
    assert {"numbers.json", "index.html"} < set(one)
    assert [path for path in one if one[path] != other[path]] == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system that can kill a process at once")
@pytest.mark.parametrize("name, moment", [("squares", moment) for moment in MOMENTS] + [("turbines", "in a write")])
def test_a_run_that_is_killed_leaves_whole_files_and_goes_on(name, moment, runs, tmp_path):
    out, expected = tmp_path / "out", written(runs(name))
    assert finished(name, out, MOMENTS[moment]) == -signal.SIGKILL
    check_whole(out)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("steps/*.safetensors")}
    assert kept or moment == "before anything"
    assert finished(name, out) == 0
    assert {name: (out / "steps" / name).stat().st_mtime_ns for name in kept} == kept  # read, not made again
    found = {path: data for path, data in written(out).items() if ".part-" not in path}
    assert found == expected
