"""Ways of stages tried on a card: the product stays what it is, and the choice is found again."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import specxai
from specxai.backends.cuda import tuned
from tolerances import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_measured_choices(monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="its kernels are Triton's")
    net = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3)).eval().cuda()
    x = torch.randn(1, 32, 12, 12, device="cuda")
    captured = specxai.capture(net, x, verify=False)
    X = torch.randn(x.numel(), 64, device="cuda")
    want = captured.linearize(x, backend="torch", verify=False).jacobian.matmat(X)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("SPECXAI_TUNE", "1")
    results = []
    for _ in range(2):  # the second is a new process's, which reads the file
        monkeypatch.setattr(tuned, "_by_device", {})
        J = captured.linearize(x, backend="cuda", verify=False).jacobian
        results += [J.matmat(X) for _ in range(3)]  # tried, captured, replayed
    assert_close(results[0], want, factor=8)
    assert all(torch.equal(got, results[0]) for got in results)
    (file,) = (tmp_path / "specxai/tuned").iterdir()
    found = json.loads(file.read_text())["choices"]
    assert len(found) == 2
    assert all(len(record["seconds"]) > 1 for record in found.values()), found
    assert all(record["chosen"] in record["seconds"] for record in found.values()), found
