"""Products over several processes, by gloo on the CPU: those of one process, and errors that nobody waits for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

import specxai

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()),
                                reason="this PyTorch is built without gloo")
SCRIPT = Path(__file__).with_name("several.py")


def run(case: str, size: int, folder: Path, ends: tuple[int, ...] = ()) -> list[dict]:
    """What each process found; nothing for those in `ends`, which end before they can tell."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen([sys.executable, SCRIPT, case, str(rank), str(size), folder / "store"], text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
                 for rank in range(size)]
    found = []
    for rank, process in enumerate(processes):
        out, err = process.communicate(timeout=240)
        assert process.returncode == (7 if rank in ends else 0), err
        found.append({} if rank in ends else json.loads(out))
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_products_are_those_of_one_process(size, tmp_path):
    leader, *others = run("products", size, tmp_path)
    assert leader["torch.float32"] <= 1e-6
    assert leader["torch.float64"] <= 1e-14
    assert leader["shapes"] == [[1, 2, 6, 6], [1, 60], True]
    assert leader["twice"] == 2
    # Seven columns, one, and five; one column is the leader's alone.
    want = {2: ([4, 1, 3], [3, 2]), 3: ([3, 1, 2], [2, 2])}[size]
    assert (leader["given"], others[0]["given"]) == want


@pytest.mark.parametrize("size", [2, 3])
def test_decompositions_are_those_of_one_process(size, tmp_path):
    leader, *_ = run("decompositions", size, tmp_path)
    for method, (off, converged, products, residual, through_cut) in leader.items():
        assert off <= 1e-6, method
        assert converged
        assert products > 0
        assert residual <= 1e-4
        assert through_cut == (True if method == "exact" else None)


def test_a_worker_s_error_reaches_the_leader_in_one_line(tmp_path):
    leader, worker = run("failing", 2, tmp_path)
    assert leader["matmat"] == "process 1: ValueError: no room for so many columns"
    assert leader["rmatmat"] == 4 * 3 * 5
    assert leader["own"]
    assert leader["stale"].startswith("0.weight has changed")
    assert worker["left"]


def test_weights_that_change_in_another_process_are_refused(tmp_path):
    leader, _ = run("stale_elsewhere", 2, tmp_path)
    assert leader["stale"].startswith("process 1: StaleError: 0.weight has changed")


@pytest.mark.parametrize("size", [2, 3])
def test_another_model_is_refused_in_every_process(size, tmp_path):
    last = size - 1
    for found in run("another_model", size, tmp_path):
        assert found["seed"].startswith(f"process {last} makes products that differ from process 0's by ")
        assert found["dtype"] == (f"process {last} has {{'shape': [60, 72], 'dtype': 'torch.float64'}}, process 0 "
                                  "{'shape': [60, 72], 'dtype': 'torch.float32'}")
        assert "[3, 5]" in found["shape"]
        assert found["no operator"] == f"process {last}: TypeError: parallel.columns needs a LinearOperator, got Tensor"
        assert found["not finite"] != "accepted"
        assert found["long"].startswith(f"process {last}: ValueError: λλλ")


def test_a_worker_that_ends_is_not_waited_for(tmp_path):
    leader, _, other = run("dies", 3, tmp_path, ends=(1,))
    assert leader["first"].startswith("process 1 has ended")
    assert leader["second"].startswith("process 1 was lost in an earlier product")
    assert leader["seconds"] < 60
    assert "first" not in other


def test_a_worker_that_hangs_is_not_waited_for(tmp_path):
    leader, _ = run("hangs", 2, tmp_path)
    assert leader["first"].startswith("process 1 has ended, or has been silent for 2 s")
    assert leader["seconds"] < 8


def test_a_leader_that_ends_is_not_waited_for(tmp_path):
    _, worker = run("leader_dies", 2, tmp_path, ends=(0,))
    assert worker["served"].startswith("process 0 has ended")


def test_without_processes_it_says_what_to_do():
    J = specxai.linearize(torch.nn.Linear(3, 2).eval(), torch.ones(1, 3)).jacobian
    with pytest.raises(RuntimeError, match=r"init_process_group\(\)"), specxai.parallel.columns(J):
        pass
