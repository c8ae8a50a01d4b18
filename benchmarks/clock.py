"""Time of a block of code, by the wall and of the process, which other processes do not stretch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

import torch

import specxai


@dataclass
class Clock:
    """`with Clock() as taken:` … `taken.wall`, `taken.cpu` in seconds; clocks add, and are multiplied by numbers."""

    wall: float = 0.0
    cpu: float = 0.0

    def __enter__(self) -> Self:
        self.wall, self.cpu = self.wall - time.perf_counter(), self.cpu - time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall, self.cpu = self.wall + time.perf_counter(), self.cpu + time.process_time()

    def __add__(self, other: Clock) -> Clock:
        return Clock(self.wall + other.wall, self.cpu + other.cpu)

    def __mul__(self, number: float) -> Clock:
        return Clock(self.wall * number, self.cpu * number)

    def __str__(self) -> str:
        """Two cells of a table."""
        return f"{self.wall:.2f} | {self.cpu:.2f}"

    def ratio(self, ours: Clock) -> str:
        """How many times as long this took."""
        return f"{self.wall / ours.wall:.1f} times as fast ({self.cpu / ours.cpu:.1f} in time of the process)"


def warm_up() -> None:
    """Import what the first decomposition imports."""
    net = torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.Linear(4, 64)).eval()
    specxai.svd(specxai.linearize(net, torch.ones(1, 64)).jacobian, rank=2)
