"""The training loop of the experiments: AdamW with one cycle of the rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["by_parameter", "descend", "shuffled"]

Batch = TypeVar("Batch")
WARM = 0.1  # of the steps until the rate has its largest value


def by_parameter(net: nn.Module, rate: float, decay: float,
                 factors: Mapping[nn.Parameter, float] = MappingProxyType({})) -> list[dict[str, Any]]:
    """A group for every parameter, as `descend` takes them: matrices are decayed, vectors (biases) are not.

    factors  of the rate, for parameters that have one of their own

    >>> [(group["lr"], group["weight_decay"]) for group in by_parameter(nn.Linear(2, 1), 0.1, 0.01)]
    [(0.1, 0.01), (0.1, 0.0)]
    """
    return [{"params": [p], "lr": rate * factors.get(p, 1.0), "weight_decay": decay if p.ndim == 2 else 0.0}
            for p in net.parameters()]


def shuffled(count: int, batch: int, generator: torch.Generator) -> Callable[[], Sequence[Tensor]]:
    """A function that gives an epoch's batches: (n,) rows of `count`, each once, in another order every time.

    >>> epoch = shuffled(5, 2, torch.Generator().manual_seed(0))
    >>> sorted(torch.cat(epoch()).tolist()), [len(rows) for rows in epoch()]
    ([0, 1, 2, 3, 4], [2, 2, 1])
    """
    return lambda: torch.randperm(count, generator=generator).split(batch)


def descend(groups: Sequence[dict[str, Any]], epochs: int, steps: int, batches: Callable[[], Iterable[Batch]],
            measure: Callable[[Batch], Tensor], progress: Callable[[int], object] = lambda epochs: None,
            warm: float = WARM) -> list[float]:
    """Lower a loss; returns its mean over every epoch, batches weighted by their lengths.

    groups    of parameters for AdamW: "params", "lr" the largest rate of the cycle, "weight_decay"
    steps     batches in an epoch, which the cycle of the rate has to know
    batches   gives those of the next epoch
    measure   the loss of a batch, a scalar that depends on the parameters
    progress  is called with 1 after each epoch
    warm      share of all steps in which the rate rises

    Same start, same batches, same machine and thread count: same parameters.

    >>> x, net = torch.tensor([[0.0], [1.0]]), nn.Linear(1, 1)
    >>> losses = descend(by_parameter(net, 0.5, 0.0), 200, 1, lambda: [x], lambda b: (net(b) - 3 * b).square().mean())
    >>> len(losses), losses[-1] < 0.01 * losses[0]
    (200, True)
    """
    total = epochs * steps
    if round(warm * total, 6) == 1:  # torch divides by the steps of the rise less one
        warm = 1.5 / total
    optimiser = torch.optim.AdamW(groups, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [group["lr"] for group in groups],
                                                   total_steps=total, pct_start=warm)
    losses = []
    with torch.enable_grad():
        for _ in range(epochs):
            lost, seen = 0.0, 0
            for batch in batches():
                loss = measure(batch)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                lost, seen = lost + loss.item() * len(batch), seen + len(batch)
            losses.append(lost / seen)
            progress(1)
    return losses
