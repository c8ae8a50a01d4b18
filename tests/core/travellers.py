"""Models that tests send to other processes, which can import this file, as they cannot a file of tests."""

from __future__ import annotations

import os

import torch
from torch import nn


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(5, 7), nn.Linear(7, 2)

    def forward(self, x, mask=None):
        return self.last(torch.relu(self.inner(x * mask)))


class Dies(Masked):
    """Ends any other process that it comes to."""

    def __init__(self) -> None:
        super().__init__()
        self.home = os.getpid()

    def forward(self, x):
        if os.getpid() != self.home:
            os._exit(3)
        return super().forward(x, torch.ones(1))


class StaysHome(Masked):
    """Cannot be read by any other process."""

    def __init__(self) -> None:
        super().__init__()
        self.home = os.getpid()

    def __setstate__(self, state: dict) -> None:
        if os.getpid() != state["home"]:
            raise RuntimeError("only where it was made")
        super().__setstate__(state)

    def forward(self, x):
        return super().forward(x, torch.ones(1))
