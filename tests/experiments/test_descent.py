"""The training loop that the experiments share, against one written out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specxai.experiments.descent import by_parameter, descend, shuffled


def problem():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(23, 4, generator=generator), torch.randn(23, 1, generator=generator)
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)), x, y


def test_it_is_adamw_by_hand_with_one_cycle_of_the_rate():
    net, x, y = problem()
    twin, factors = copy.deepcopy(net), {net[2].bias: 3.0}
    losses = descend(by_parameter(net, 1e-2, 0.1, factors), 5, 4, shuffled(23, 6, torch.Generator().manual_seed(2)),
                     lambda rows: F.mse_loss(net(x[rows]), y[rows]))
    # Torch's own schedule on a parameter that nothing reads says the rates; the moments are written out.
    dummy = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(dummy, 1e-2, total_steps=20, pct_start=0.1)
    order, moments, expected, step = torch.Generator().manual_seed(2), {}, [], 0
    for _ in range(5):
        total = 0.0
        for rows in torch.randperm(23, generator=order).split(6):
            step += 1
            loss = F.mse_loss(twin(x[rows]), y[rows])
            gradients = torch.autograd.grad(loss, list(twin.parameters()))
            rate, (first_beta, second_beta) = dummy.param_groups[0]["lr"], dummy.param_groups[0]["betas"]
            with torch.no_grad():
                for place, (p, g) in enumerate(zip(twin.parameters(), gradients, strict=True)):
                    own = rate * (3.0 if place == 3 else 1.0)
                    if p.ndim == 2:
                        p.mul_(1 - own * 0.1)
                    m, v = moments.get(place, (0, 0))
                    m, v = first_beta * m + (1 - first_beta) * g, second_beta * v + (1 - second_beta) * g * g
                    moments[place] = m, v
                    p -= own * (m / (1 - first_beta**step)) / ((v / (1 - second_beta**step)).sqrt() + 1e-8)
            dummy.step()
            schedule.step()
            total += loss.item() * len(rows)
        expected.append(total / 23)
    assert losses == pytest.approx(expected, rel=1e-4)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_progress_counts_epochs_and_short_cycles_run():
    net, x, y = problem()
    seen = []
    for epochs, steps in ((3, 1), (5, 2), (1, 1), (1, 10)):  # of ten steps a tenth is one
        descend(by_parameter(net, 1e-2, 0.0), epochs, steps, shuffled(23, -(-23 // steps), torch.Generator()),
                lambda rows: F.mse_loss(net(x[rows]), y[rows]), seen.append)
    assert seen == [1] * 10
