"""A small VGG-style net for scikit-learn's handwritten digits, its checkpoint and its data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 32
CLASSES = 10
SPLIT_SEED = 0
HELD_OUT = 360
LAST_CONV_LAYER = "features.18"  # the last max-pool: what the classifier reads
PENULTIMATE_LAYER = "classifier.1"  # the last hidden ReLU
CHECKPOINT = Path(__file__).with_name("digits.safetensors")


class DigitsNet(nn.Module):
    """Convolution, batch norm, ReLU and max-pooling as in VGG, for images (1, 1, 32, 32); 10 logits out.

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
                                        nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 32, 32): `raw` in [0, 1] for display, `x` normalised for the net; `y` (N,) their digits."""

    x: Tensor
    y: Tensor
    raw: Tensor


def digits_data() -> tuple[Digits, Digits]:
    """(train, held-out): the 8 × 8 images of scikit-learn upsampled to 32 × 32, split once and for all.

    Raises ImportError naming the extra where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits data need scikit-learn: pip install 'specxai[demo]'") from error
    bunch = load_digits()
    small = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held, train = order[:HELD_OUT], order[HELD_OUT:]
    raw = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    mean, std = raw[train].mean(), raw[train].std()
    x = (raw - mean) / std
    return Digits(x[train], labels[train], raw[train]), Digits(x[held], labels[held], raw[held])


def load_digits_net() -> DigitsNet:
    """The trained net in eval mode."""
    from safetensors.torch import load_file

    net = DigitsNet()
    net.load_state_dict(load_file(CHECKPOINT))
    return net.eval()


def checkpoint_info() -> dict:
    """What the checkpoint says of itself: seed, epochs, held-out accuracy, versions."""
    from safetensors import safe_open

    with safe_open(CHECKPOINT, framework="pt") as file:
        return json.loads(file.metadata()["specxai"])


@torch.no_grad()
def accuracy(net: nn.Module, data: Digits) -> float:
    """Share of images whose largest logit is their digit."""
    return (net(data.x).argmax(1) == data.y).double().mean().item()
