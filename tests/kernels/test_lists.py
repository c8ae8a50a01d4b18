"""Lists of what is live: PyTorch's are those of the compiled CUDA kernels, here in emulation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from cuda_harness import emulated
from specxai.kernels import lists
from specxai.native import cuda


@pytest.fixture
def both(monkeypatch):
    """Calls that run on PyTorch, and on the compiled kernels."""
    def run(call):
        monkeypatch.setattr(cuda, "_module", None)
        plain = call()
        monkeypatch.setattr(cuda, "_module", emulated())
        return plain, call()
    return run


def table(lines: int, width: int, dead: float) -> torch.Tensor:
    rows = torch.randint(0, 1000, (lines, width), dtype=torch.int32)
    return rows.masked_fill_(torch.rand(lines, width) < dead, -1)


@pytest.mark.parametrize("shape", [(0,), (1,), (5000,), (40, 30), (3, 0)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_places(both, shape, share):
    mask = torch.rand(shape) < share
    plain, compiled = both(lambda: lists.live_places(mask))
    assert plain.dtype is torch.int32
    assert torch.equal(plain, compiled)
    assert plain.tolist() == [i for i, live in enumerate(mask.flatten().tolist()) if live]


@pytest.mark.parametrize("lines, width", [(1, 1), (17, 8), (300, 13), (1, 5000), (4, 0), (0, 3)])
@pytest.mark.parametrize("dead", [0.0, 0.6, 1.0])
def test_lists(both, lines, width, dead):
    rows = table(lines, width, dead)
    plain, compiled = both(lambda: lists.live_lists(rows))
    for name in ("begin", "row", "column"):
        assert torch.equal(getattr(plain, name), getattr(compiled, name))
    row, column, begin = lists.filled_up(plain, 4)
    for i, line in enumerate(rows.tolist()):
        live = [(value, c) for c, value in enumerate(line) if value >= 0]
        size = -(-len(live) // 4) * 4
        found = list(zip(row[begin[i]:begin[i] + size].tolist(), column[begin[i]:begin[i] + size].tolist(),
                         strict=True))
        assert found == live + [(-1, 0)] * (size - len(live))
    assert len(row) == int((-(-(rows >= 0).sum(1) // 4) * 4).sum())


@pytest.mark.parametrize("groups", [1, 3])
def test_rows_of_all_taps(both, groups):
    inside = table(20, 6, 0.3)
    neighbours = torch.randint(-1, 20, (15, 9), dtype=torch.int32)
    plain, compiled = both(lambda: lists.tap_rows(inside, neighbours, groups))
    assert torch.equal(plain, compiled)
    assert plain.shape == (15, groups, 9, 6 // groups)
    for s, t in ((0, 0), (7, 3), (14, 8)):
        want = inside[neighbours[s, t]] if neighbours[s, t] >= 0 else torch.full((6,), -1)
        assert torch.equal(plain[s, :, t].flatten(), want.int())


def test_tables_of_a_network_are_made_by_the_compiled_kernels(both, monkeypatch):
    """Three channels, whose sites have lists of their own, a depthwise layer, and few outputs before a pooling."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
                        nn.MaxPool2d(2), nn.Conv2d(8, 32, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 4)).eval()
    x = torch.randn(1, 3, 12, 12)
    called = set()
    for name in ("compact", "live_lists", "tap_rows"):
        real = getattr(cuda, name)
        monkeypatch.setattr(cuda, name, lambda *given, real=real, name=name: (called.add(name), real(*given))[1])
    X = torch.randn(3 * 144, 4)

    def product():
        called.clear()
        J = specxai.linearize(net, x, backend="cuda", verify=False).jacobian
        return J.matmat(X), J.rmatmat(J.matmat(X))

    plain, compiled = both(product)
    assert called == {"compact", "live_lists", "tap_rows"}
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))
