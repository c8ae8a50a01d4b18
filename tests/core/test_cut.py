"""The narrowest cut: fewest live units by brute force, and an exact factorisation."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import nn

import specxai
from nets import NETS, build
from specxai.backends.reference import live_units


def brute_force(local: specxai.Local) -> int:
    """Fewest live units over all sets of steps whose removal separates input from output."""
    graph, program = local.graph, local.captured.program
    path = graph.between([program.input], [program.output])
    masks = live_units(graph, [program.input], [program.output], ())
    widths = {step: int(mask.sum()) for step, mask in masks.items()}
    best = min(widths[program.input], widths[program.output])
    inner = [step for step in path if step != program.output]
    for size in (1, 2, 3):
        for steps in combinations(inner, size):
            if sum(widths[s] for s in steps) < best and not graph.between([program.input], [program.output], steps):
                best = sum(widths[s] for s in steps)
    return best


@pytest.mark.parametrize("name", NETS)
def test_narrowest_cut(name):
    local = specxai.linearize(*build(name))
    J = local.jacobian
    cut, best = J.narrowest_cut(), brute_force(local)
    if cut is None:  # nothing narrower than the operator itself
        assert best >= min(J.shape)
        return
    assert cut.width == best < min(J.shape)
    assert cut.left.shape == (J.shape[0], best)
    assert cut.right.shape == (best, J.shape[1])
    dense = J.to_dense()
    assert (cut.left.to_dense() @ cut.right.to_dense() - dense).norm() <= 1e-13 * dense.norm()
    u = torch.randn(J.shape[0], 2, dtype=torch.float64)
    assert (cut.right.T @ (cut.left.T @ u) - dense.T @ u).norm() <= 1e-13 * dense.norm() * u.norm()


def test_the_cut_goes_round_a_skip():
    """A bottleneck that a skip avoids is no cut; beyond the skip's end there is a real one."""

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up, self.out = nn.Linear(9, 2), nn.Linear(2, 9), nn.Linear(5, 9)
            self.waist = nn.Linear(9, 5)

        def forward(self, x):
            return self.out(self.waist(x + self.up(self.down(x))))

    local = specxai.linearize(Around().eval().double(), torch.randn(1, 9, dtype=torch.float64))
    assert local.jacobian.narrowest_cut().width == 5


def test_dead_units_do_not_count():
    model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 9)).eval().double()
    with torch.no_grad():
        model[0].bias[:5] = -100
    x = torch.rand(1, 9, dtype=torch.float64)
    alive = int((model[:2](x) > 0).sum())
    cut = specxai.linearize(model, x).jacobian.narrowest_cut()
    assert cut.width == alive <= 3
    assert specxai.svd(specxai.linearize(model, x).jacobian, method="exact").S.shape == (alive,)


def test_a_net_that_is_dead_has_rank_zero():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4)).eval()
    with torch.no_grad():
        model[0].bias.fill_(-100)
    local = specxai.linearize(model, torch.rand(1, 4))
    assert not local.jacobian.to_dense().any()
    result = specxai.svd(local.jacobian)
    assert result.rank == 0 or not result.S.any()


@pytest.mark.parametrize("backend", ["reference", "native", "torch"])
def test_the_cut_between_some_positions(backend):
    """Five positions of 6 through 2 units each: one position is cut at 2, sums over positions know no cut."""
    net = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 7)).eval().double()
    local = specxai.linearize(net, torch.randn(1, 5, 6, dtype=torch.float64), backend=backend)
    for ends, width in (({"target_positions": 3}, 2), ({"source_positions": [0, 2]}, 4),
                        ({"source_positions": 1, "target_positions": 1}, 2)):
        J = local.operator(**ends)
        cut = J.narrowest_cut()
        assert cut.width == width
        assert torch.allclose(cut.left.to_dense() @ cut.right.to_dense(), J.to_dense(), atol=1e-14)
    assert local.operator(target_positions="sum").narrowest_cut() is None
