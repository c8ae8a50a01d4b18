"""Small nets in the manner of VGG, of which the trained ones are, and how they are judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

BLOCK = 500  # images that are read at once


class SmallVGG(nn.Module):
    """Convolution 3 × 3, batch norm, ReLU and max-pooling, then a hidden layer: images (N, C, H, W) to logits.

    channels   C
    stages     (width, pooled?) of each convolution
    flat       values that the last pool leaves of an image
    hidden     units of the classifier's hidden layer, with `dropout` behind it
    inplace    whether the ReLUs write over what they read

    Layers are named as torchvision names VGG's, `features.N` and `classifier.N`.

    >>> SmallVGG(1, ((4, True), (8, True)), flat=8 * 4, hidden=5, classes=3).eval()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 3])
    """

    def __init__(self, channels: int, stages: Sequence[tuple[int, bool]], flat: int, hidden: int, classes: int,
                 dropout: float = 0.0, inplace: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, pooled in stages:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace)]
            if pooled:
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(flat, hidden), nn.ReLU(inplace), nn.Dropout(dropout),
                                        nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Labelled(Protocol):
    """Images x (N, C, H, W) with their classes y (N,)."""

    x: Tensor
    y: Tensor


@torch.no_grad()
def accuracy(net: nn.Module, data: Labelled) -> float:
    """Share of images whose largest logit is their class, the net in eval mode."""
    right = [net(x).argmax(1) == y for x, y in zip(data.x.split(BLOCK), data.y.split(BLOCK), strict=True)]
    return torch.cat(right).double().mean().item()
