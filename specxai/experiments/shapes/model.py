"""The VGG-style net that tells the shapes apart, and its checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from specxai.experiments.shapes.data import CLASSES, MEAN, STD, Shapes
from specxai.zoo.checkpoint import header, loaded

CHECKPOINT = Path(__file__).with_name("shapes.safetensors")
EARLY_LAYER = "features.6"  # the first max-pool; (1, 16, 32, 32)
MIDDLE_LAYER = "features.13"  # the second max-pool; (1, 32, 16, 16)
LAST_CONV_LAYER = "features.24"  # the last max-pool, which the classifier reads; (1, 96, 4, 4)
PENULTIMATE_LAYER = "classifier.1"  # the last hidden ReLU; (1, 96)
HELD_OUT_SEED, HELD_OUT = 1_000_003, 4000


class ShapesNet(nn.Module):
    """Convolution, batch norm, ReLU and max-pooling as in VGG: images (N, 3, 64, 64) to logits (N, 8).

    >>> import torch
    >>> ShapesNet().eval()(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 8])
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, pool in ((16, False), (16, True), (32, False), (32, True), (64, False), (64, True), (96, True)):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            if pool:
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(96 * 16, 96), nn.ReLU(), nn.Dropout(0.2), nn.Linear(96, len(CLASSES)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def checkpoint_info(path: Path = CHECKPOINT) -> dict:
    """What a checkpoint says of itself: classes, mean, std, seed, images, batch, held_out, held_out_accuracy, torch."""
    return header(path)


def load_shapes_net(path: Path = CHECKPOINT) -> ShapesNet:
    """The trained net in eval mode; the shipped one unless another checkpoint is given.

    Raises ValueError for a checkpoint whose classes or normalisation are not this module's; train it again with
    `python -m specxai.experiments.shapes.train`.
    """
    return loaded(ShapesNet(), path, {"classes": list(CLASSES), "mean": MEAN, "std": STD})


@torch.no_grad()
def accuracy(net: nn.Module, data: Shapes) -> float:
    """Share of images whose largest logit is their class, the net in eval mode."""
    right = [(net(data[rows].x).argmax(1) == data.y[rows]) for rows in torch.arange(len(data)).split(500)]
    return torch.cat(right).double().mean().item()
