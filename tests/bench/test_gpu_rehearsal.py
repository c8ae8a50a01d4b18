"""What a card would be asked, rehearsed on the CPU: each figure is there with its error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu/measure.py"
sys.path.append(str(SCRIPT.parent))
estimate = pytest.importorskip("estimate", reason="it reads the kernels' tiles: needs triton")
report = pytest.importorskip("report", reason="a file of the benchmark's")


@pytest.mark.slow
def test_the_estimate_counts_the_tests_that_there_are():
    """Each test of a card is in one of the processes, and there are as many as its estimate says."""
    files = sorted({tests.file for tests in estimate.TESTS})
    done = subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", *files],
                          capture_output=True, text=True, cwd=ROOT)
    found = [line for line in done.stdout.splitlines() if "::" in line]
    for tests in estimate.TESTS:
        chosen = Expression.compile(tests.chosen or "test")
        mine = [name for name in found if name.startswith(tests.file)
                and chosen.evaluate(lambda word, name=name: word in name)]
        assert len(mine) == tests.count, tests
    assert sum(tests.count for tests in estimate.TESTS) == len(found)


@pytest.mark.parametrize(("seconds", "limit", "most", "warm", "takes"), [
    (0.001, 0.3, 10, True, 0.011), (1.0, 0.3, 10, True, 2.3), (2.0, 0.0, 1, False, 2.0), (0.1, 0.25, 10, False, 0.35)])
def test_the_estimate_of_what_a_clock_takes(seconds, limit, most, warm, takes):
    assert estimate._timed(seconds, limit, most, warm) == pytest.approx(takes)


@pytest.mark.slow
def test_the_rehearsal_measures_everything(tmp_path):
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, SCRIPT, "--dry", "--out", tmp_path], capture_output=True, text=True,
                          env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "result.json").read_text())
    assert [row["what"] for row in found["roofs"]] == ["copy", "fp32", "tf32", "bf16"]
    nets = [row for row in found["cases"] if row["case"].startswith("tiny, for ")]
    asked = {(row["peer"], row.get("question")) for row in nets}
    peers = ("torch.func fp32", "torch.func TF32", "specxai torch", "specxai cuda")
    assert asked == {(peer, question) for peer in peers for question in ("forward", "adjoint", "equal", "default")}
    passes = [row for row in nets if row["question"] in ("forward", "adjoint")]
    assert all(row["error"] <= 1e-5 for row in passes)
    assert {row["roof"] for row in passes if row["peer"] == "specxai cuda"} <= {"copy", "tf32"}
    others = [row for row in found["cases"] if row not in nets]
    bounds = {"fp32-grade": 1e-6, "tf32": 1e-3, "bf16": 2e-2, "QR": 2e-6, "twice": 1e-5, "explained": 1e-5,
              "detached Jacobian of the last position": 1e-3}
    # Where transformers is installed; in bfloat16.
    lens = {"4 rows of the lens": 0, "lens of a prompt": 3e-2, "linearisation of a further prompt": 0}
    given = [row for row in others if "left_out" not in row]
    assert all(row["error"] <= (bounds | lens)[row["question"]] for row in given)
    assert bounds.keys() <= {row["question"] for row in given}
    explained = [row["peer"] for row in others if row["question"] == "explained"]
    assert explained == ["one at a time on the CPU", "explain_many"]
    expected = {step["name"]: step["seconds"] for step in found["estimate"]}
    assert sum(expected.values()) <= 360, expected  # six minutes
    assert all(seconds > 0 for seconds in expected.values())
    table = (tmp_path / "result.md").read_text()
    assert "A rehearsal at tiny sizes" in table
    assert table.count("| ") > 20


@pytest.mark.slow
def test_the_rehearsal_of_the_second_call_tries_the_ways_of_layers(tmp_path):
    """With a clock that pretends that each way is faster than the one before: all layers change theirs."""
    pytest.importorskip("triton")
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, SCRIPT, "--dry", "--more", "--out", tmp_path], capture_output=True,
                          text=True, env={**os.environ, "TRITON_INTERPRET": "1", **cache})
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "more.json").read_text())
    passes = [row for row in found["cases"] if row["peer"].endswith((", counted", ", measured"))]
    assert [row["question"] for row in passes] == ["forward", "adjoint"] * 2
    assert all(row["error"] <= 1e-5 for row in passes)
    assert len(found["choices"]) == 4
    assert all(row["chosen"] != row["counted"] and row["gain"] > 1 and not row["failed"] for row in found["choices"])
    assert {row["chosen"].split(",")[0] for row in found["choices"]} == {"inputs", "outputs"}
    expected = {step["name"]: step["seconds"] for step in found["estimate"]}
    assert sum(expected.values()) <= 360, expected
    bounds = {"fp32": 1e-6, "tf32": 1e-3, "tf32x3": 1e-6, "bf16": 1e-2, "bf16x3": 1e-4, "bf16x6": 1e-6}
    assert {row["precision"] for row in found["kernels"]} == set(bounds)
    assert all(row["error"] <= bounds[row["precision"]] for row in found["kernels"])
    assert len(found["streams"]) == len(estimate.GROUPS) + 1
    assert all(row["error"] <= 3e-3 for row in found["streams"]), "bfloat16 rounds by 2e-3"
    table = (tmp_path / "more.md").read_text()
    assert all(f"| {row['what']} |" in table for row in found["streams"])
    assert "4 of 4 stages run another way than the counted one." in table
    assert all(row["stage"] in table for row in found["choices"])
    assert not (tmp_path / "cache/specxai").exists(), "a rehearsal is remembered"


def test_the_table_of_ways_names_what_did_not_run():
    row = {"case": "net", "stage": "layer", "counted": "a", "chosen": "b", "seconds": {"b": 2.0},
           "failed": {"a": "OutOfResources: shared memory"}, "gain": None}
    kept = row | {"chosen": "a", "stage": "unchanged", "seconds": {"a": 1.0, "b": 3.0}, "failed": {}, "gain": 1.0}
    lines = report._choices([row, kept])
    assert "1 of 2 stages run another way than the counted one. One run of each takes 1 s in place of 1 s." in lines[3]
    assert "| net | layer | a |  | b | 2 s |  | a |" in lines
    assert lines[-1] == "- did not run: a (OutOfResources: shared memory)"
    assert not any("unchanged" in line for line in lines)
