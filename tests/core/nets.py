"""Small nets that the core's tests share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Skip(nn.Module):
    """Convolutions with a residual add, one ReLU module called three times, pooling and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.relu(self.stem(x))
        z = self.relu(z + self.body(z))
        return self.head(self.relu(self.pool(z) - 0.1).flatten(1))


class Branches(nn.Module):
    """Two branches, of which one starts at the input, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 3)
        self.deep, self.head = nn.Linear(4, 5), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        deep = F.relu(self.deep(F.relu(self.left(x))))
        return self.head(torch.cat([deep, F.leaky_relu(self.right(x))], 1))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 4))


def convolutional() -> nn.Module:
    """Convolutions into a fully connected tail: flattening, then two dense stages."""
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(20, 7), nn.PReLU(), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 3))


NETS = {"perceptron": (perceptron, (1, 6)), "convolutional": (convolutional, (1, 2, 6, 6)),
        "skip": (Skip, (1, 2, 6, 6)), "branches": (Branches, (1, 6))}


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A net of `NETS` with moved batch statistics, and an input."""
    make, shape = NETS[name]
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval().to(dtype), torch.randn(shape, dtype=dtype)
