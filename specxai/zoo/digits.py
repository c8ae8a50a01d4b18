"""A small VGG-style net for scikit-learn's handwritten digits, its checkpoint and its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specxai.zoo.checkpoint import header, loaded

SIZE = 32
CLASSES = tuple("0123456789")
MEAN, STD = 0.3056, 0.3237  # of the training pixels; an image in [0, 1] is normalised as (image − MEAN) / STD
SPLIT_SEED = 0
HELD_OUT = 360
LAST_CONV_LAYER = "features.18"  # the last max-pool, which the classifier reads; (1, 64, 2, 2)
PENULTIMATE_LAYER = "classifier.1"  # the last hidden ReLU; (1, 64)
CHECKPOINT = Path(__file__).with_name("digits.safetensors")


class DigitsNet(nn.Module):
    """Convolution, batch norm, ReLU and max-pooling as in VGG: images (N, 1, 32, 32) to logits (N, 10).

    Layers are named as torchvision names VGG's, `features.N` and `classifier.N`.

    >>> import torch
    >>> DigitsNet().eval()(torch.zeros(1, 1, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width, pool in ((16, False), (16, True), (32, True), (64, True), (64, True)):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            if pool:
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(64 * 4, 64), nn.ReLU(inplace=True), nn.Dropout(0.3),
                                        nn.Linear(64, len(CLASSES)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


@dataclass(frozen=True)
class Digits:
    """Images for the net, their digits, and the images as they were.

    Attributes:
        x: (N, 1, 32, 32), normalised.
        y: (N,), 0 to 9.
        raw: (N, 1, 32, 32) in [0, 1], for display.
        index: (N,) rows of scikit-learn's data set.
    """

    x: Tensor
    y: Tensor
    raw: Tensor
    index: Tensor


def digits_data() -> tuple[Digits, Digits]:
    """(train, held-out): 1,437 and 360 images of 8 × 8 pixels upsampled to 32 × 32, split once and for all.

    Raises ImportError naming the extra where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits data need scikit-learn: pip install 'specxai[demo]'") from error
    bunch = load_digits()
    small = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target)
    raw = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    x = (raw - MEAN) / STD
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held, train = order[:HELD_OUT], order[HELD_OUT:]
    return Digits(x[train], labels[train], raw[train], train), Digits(x[held], labels[held], raw[held], held)


def checkpoint_info(path: Path = CHECKPOINT) -> dict:
    """What a checkpoint says of itself.

    Keys: classes, mean, std, split_seed, held_out (images), held_out_accuracy, seed, epochs, batch, torch.
    """
    return header(path)


def load_digits_net(path: Path = CHECKPOINT) -> DigitsNet:
    """The trained net in eval mode; the shipped one unless another checkpoint is given.

    Raises ValueError for a checkpoint whose classes or normalisation are not this module's.
    """
    return loaded(DigitsNet(), path, {"classes": list(CLASSES), "mean": MEAN, "std": STD})


@torch.no_grad()
def accuracy(net: nn.Module, data: Digits) -> float:
    """Share of images whose largest logit is their digit, the net in eval mode."""
    return (net(data.x).argmax(1) == data.y).double().mean().item()
