"""A small VGG-style net for scikit-learn's handwritten digits, its checkpoint and its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from specxai.zoo.checkpoint import header, loaded
from specxai.zoo.vgg import SmallVGG, accuracy

__all__ = ["CHECKPOINT", "CLASSES", "HELD_OUT", "LAST_CONV_LAYER", "MEAN", "PENULTIMATE_LAYER", "SIZE", "SPLIT_SEED",
           "STD", "Digits", "DigitsNet", "accuracy", "checkpoint_info", "digits_data", "load_digits_net"]

SIZE = 32
CLASSES = tuple("0123456789")
MEAN, STD = 0.3056, 0.3237  # of the training pixels; an image in [0, 1] is normalised as (image − MEAN) / STD
SPLIT_SEED = 0
HELD_OUT = 360
LAST_CONV_LAYER = "features.18"  # the last max-pool, which the classifier reads; (1, 64, 2, 2)
PENULTIMATE_LAYER = "classifier.1"  # the last hidden ReLU; (1, 64)
CHECKPOINT = Path(__file__).with_name("digits.safetensors")


class DigitsNet(SmallVGG):
    """Convolution, batch norm, ReLU and max-pooling as in VGG: images (N, 1, 32, 32) to logits (N, 10).

    Layers are named as torchvision names VGG's, `features.N` and `classifier.N`.

    >>> import torch
    >>> DigitsNet().eval()(torch.zeros(1, 1, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self) -> None:
        super().__init__(1, ((16, False), (16, True), (32, True), (64, True), (64, True)), 64 * 4, 64, len(CLASSES),
                         dropout=0.3, inplace=True)


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
