"""Several threads, precision settings, forks and fresh processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import specxai
from specxai._once import once
from specxai.precision import full_precision

STRESS = Path(__file__).parents[2] / "benchmarks" / "stress.py"
CPU = torch.device("cpu")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 30)).eval()


def together(work, count: int) -> list:
    """What `count` threads return, started at one moment."""
    results, barrier = [], threading.Barrier(count)

    def go():
        barrier.wait()
        results.append(work())

    threads = [threading.Thread(target=go) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count
    return results


def test_an_attribute_is_made_once_by_whoever_comes_first():
    made = []

    class Slow:
        @once
        def value(self):
            made.append(1)
            time.sleep(0.05)
            return object()

    slow = Slow()
    assert len({id(value) for value in together(lambda: slow.value, 8)}) == 1
    assert made == [1]


def test_a_failed_attribute_is_tried_again():
    class Flaky:
        tries = 0

        @once
        def value(self):
            self.tries += 1
            if self.tries == 1:
                raise ValueError("the first time")
            return self.tries

    flaky = Flaky()
    with pytest.raises(ValueError, match="the first time"):
        flaky.value  # noqa: B018
    assert flaky.value == 2


def test_the_first_products_of_one_operator():
    x = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    local = specxai.linearize(net(), x)
    V = torch.randn(432, 20, generator=torch.Generator().manual_seed(2))
    expected = specxai.linearize(net(), x).jacobian @ V
    J = local.jacobian
    for result in together(lambda: (J @ V, J.T @ (J @ V)), 8):
        assert torch.equal(result[0], expected)
        assert torch.allclose(V.flatten() @ result[1].flatten(), (expected**2).sum(), rtol=1e-4)


@pytest.fixture
def lowered():
    """A user's setting of reduced precision."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    yield torch.backends.mkldnn.matmul
    torch.backends.mkldnn.matmul.fp32_precision = before


def test_full_precision_is_left_alone():
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    assert before in ("none", "ieee")
    with full_precision(CPU):
        assert switch.fp32_precision == before


def test_the_last_thread_puts_the_users_precision_back(lowered):
    seen = []

    def work():
        for _ in range(200):
            with full_precision(CPU):
                seen.append(lowered.fp32_precision)

    together(work, 4)
    assert set(seen) == {"ieee"}
    assert lowered.fp32_precision == "bf16"
    with pytest.raises(ValueError, match="inside"), full_precision(CPU):
        raise ValueError("inside")
    assert lowered.fp32_precision == "bf16"


def test_a_precision_that_is_inherited_stays_so():
    backends = torch.backends
    try:
        backends.mkldnn.fp32_precision = "bf16"
        with full_precision(CPU):
            assert backends.mkldnn.conv.fp32_precision == "ieee"
        assert backends.mkldnn.conv.fp32_precision == "bf16"
    finally:
        backends.mkldnn.fp32_precision = "none"
    assert backends.mkldnn.conv.fp32_precision == "none"


def test_modes_of_the_thread():
    with torch.inference_mode(), full_precision(CPU):
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kinds", ["product adjoint wide linearize exact krylov explain"])
def test_threads_do_not_disturb_each_other(kinds):
    done = subprocess.run([sys.executable, str(STRESS), "--seconds", "5", "--kinds", *kinds.split()], text=True,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "right, and nothing global changed" in done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_goes_on():
    model, x = net(), torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    J = specxai.linearize(model, x).jacobian
    V = torch.randn(432, 32, generator=torch.Generator().manual_seed(2))
    wide, one, values = J @ V, J @ V[:, 0], specxai.svd(J, rank=3, progress=False).S
    child = os.fork()
    if child == 0:  # pragma: no cover  (another process)
        signal.alarm(60)  # a hang ends it
        same = torch.equal(J @ V, wide) and torch.allclose(J @ V[:, 0], one, atol=1e-5)
        same = same and torch.allclose(specxai.svd(J, rank=3, progress=False).S, values)
        os._exit(0 if same and torch.allclose(specxai.linearize(model, x).jacobian @ V, wide, atol=1e-5) else 1)
    assert os.waitpid(child, 0)[1] == 0
