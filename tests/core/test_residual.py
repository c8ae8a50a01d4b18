"""Sums merge into the stages that make their operands, and every graph of sums stays what the reference says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import specxai
from specxai import native
from specxai.backends.native.sums import SumWork
from tolerances import assert_close

pytestmark = pytest.mark.skipif(not native.available()[0], reason=f"no compiled kernels: {native.available()[1]}")
CHANNELS = 3


class Net(nn.Module):
    """Values of one shape, each made of earlier ones: (operation, first operand, second operand)."""

    def __init__(self, program: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.program, self.layers = program, nn.ModuleDict()
        for at, (name, _, _) in enumerate(program):
            if name == "norm":
                norm = nn.BatchNorm2d(CHANNELS)
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                self.layers[str(at)] = norm
            elif name in ("conv", "point"):
                size = 3 if name == "conv" else 1
                self.layers[str(at)] = nn.Conv2d(CHANNELS, CHANNELS, size, padding=size // 2)

    def forward(self, x):
        values = [x]
        for at, (name, first, second) in enumerate(self.program):
            a, b = (values[-1 - i % len(values)] for i in (first, second))
            if name == "relu":
                values.append(F.relu(a))
            elif name == "add":
                values.append(a + b)
            elif name == "spread":  # one row for many units
                values.append(F.adaptive_avg_pool2d(a, 1).expand_as(a))
            elif name == "mix":
                values.append(F.avg_pool2d(a, 3, 1, 1) - 0.5 * b)
            else:
                values.append(self.layers[str(at)](a))
        return values[-1]


def check(net: nn.Module, x: torch.Tensor) -> specxai.Local:
    captured = specxai.capture(net, x, verify=False)
    ours, plain, wanted = (captured.linearize(x, backend=name) for name in ("native", "torch", "reference"))
    for layer in ("", *ours.layers[1:-1:3]):
        parts = ("right", "left", "bypass") if layer else ("jacobian",)
        for part in parts:
            *got, want = (getattr(local.split(layer) if layer else local, part) for local in (ours, plain, wanted))
            for probes in (2, 17):
                X, Y = (torch.randn(size, probes, dtype=x.dtype) for size in (want.shape[1], want.shape[0]))
                for _ in range(2):  # the second finds the first's values in the arena
                    for a in got:
                        assert_close(a @ X, want @ X, factor=8)
                        assert_close(a.T @ Y, want.T @ Y, factor=8)
    return ours


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["conv", "conv", "point", "norm", "relu", "add", "add", "mix", "spread"]),
                          st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=14), st.integers(0, 99))
def test_any_graph_of_sums(program, seed):
    torch.manual_seed(seed)
    check(Net(program).double().eval(), torch.randn(1, CHANNELS, 4, 5, dtype=torch.float64))


BLOCK = [("conv", 0, 0), ("norm", 0, 0), ("relu", 0, 0), ("conv", 0, 0), ("norm", 0, 0)]


@pytest.mark.parametrize(("program", "left"), [
    ([("relu", 0, 0), *BLOCK, ("add", 0, 5), ("relu", 0, 0), *BLOCK, ("add", 0, 5), ("relu", 0, 0)], 0),
    # Another branch makes the second operand, with a norm of its own.
    ([*BLOCK, ("conv", 5, 0), ("norm", 0, 0), ("add", 0, 2), ("relu", 0, 0)], 0),
    ([*BLOCK, ("add", 0, 5), ("relu", 0, 0), *BLOCK, ("add", 0, 5), ("add", 0, 6)], 2),  # the second base is read again
    ([("relu", 0, 0), ("add", 0, 0)], 1),
    ([("conv", 0, 0), ("conv", 1, 0), ("conv", 2, 0), ("add", 0, 1), ("norm", 0, 0), ("add", 0, 4)], 1),
    ([("conv", 0, 0), ("spread", 0, 0), ("conv", 1, 0), ("add", 0, 1)], 2),
], ids=["skip", "branch", "read again", "twice", "scaled sum", "spread"])
def test_which_sums_are_left(program, left, dtype):
    torch.manual_seed(0)
    local = check(Net(program).to(dtype).eval(), torch.randn(1, CHANNELS, 6, 5, dtype=dtype))
    assert sum(isinstance(work, SumWork) for work in local.jacobian._products._work) == left
