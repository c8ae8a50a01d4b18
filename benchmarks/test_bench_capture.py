"""What comes before the SVD: importing, capturing a model once, and fixing the gates at a further input."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from specxai.bench import fresh
from specxai.bench.peers import capture, export

WHO = {"bare torch.export": export, "specxai.capture": capture}
IMPORTS = {
    "import torch": "import torch",
    "import specxai": "import specxai",
    "import specxai, all used": "import specxai; specxai.capture, specxai.explain, specxai.svd.svd",
}


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("name", ["digits", "alexnet", "resnet18"])
def test_capture(benchmark, subject_of, record, options, name, who):
    subject = subject_of(name)
    benchmark.group = f"{name} first capture"
    benchmark.pedantic(WHO[who], args=(subject,), rounds=3, warmup_rounds=1)
    ours = who == "specxai.capture"
    error = subject.captured.linearize(subject.x, backend="reference").exactness if ours else None
    once = fresh.measure("capture", name, "specxai" if ours else "export", options.threads)
    record(case=name, question="capture", text="a model captured once", peer=who,
           seconds_fresh=once["seconds"], peak_mb=once["peak_mb"], error=error)  # fmt: skip


@pytest.mark.parametrize("who", ["forward pass", "linearize"])
@pytest.mark.parametrize("name", ["digits", "alexnet", "resnet18", "vgg11_bn"])
def test_further_input(benchmark, subject_of, record, name, who):
    subject = subject_of(name)
    other = subject.x.flip(-1).contiguous()
    captured, model = subject.captured, subject.model

    @torch.no_grad()
    def forward():
        return model(other)

    work = forward if who == "forward pass" else lambda: captured.linearize(other, backend="reference")
    benchmark.group = f"{name} further input"
    result = benchmark.pedantic(work, rounds=5, warmup_rounds=1)
    record(case=name, question="further input", text="a further input of a captured model", peer=who,
           error=None if who == "forward pass" else result.exactness)  # fmt: skip


@pytest.mark.parametrize("what", IMPORTS)
def test_import(benchmark, record, what):
    benchmark.group = "import"
    command = [sys.executable, "-c", IMPORTS[what]]
    benchmark.pedantic(subprocess.run, args=(command,), kwargs={"check": True}, rounds=3, warmup_rounds=1)
    record(case="import", question="import", text="a fresh interpreter", peer=what, error=None)

