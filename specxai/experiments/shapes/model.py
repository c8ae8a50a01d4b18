"""The VGG-style net that tells the shapes apart, and its checkpoint."""

from __future__ import annotations

from pathlib import Path

from specxai.experiments.shapes.data import CLASSES, MEAN, STD
from specxai.zoo.checkpoint import header, loaded
from specxai.zoo.vgg import SmallVGG

CHECKPOINT = Path(__file__).with_name("shapes.safetensors")
EARLY_LAYER = "features.6"  # the first max-pool; (1, 16, 32, 32)
MIDDLE_LAYER = "features.13"  # the second max-pool; (1, 32, 16, 16)
LAST_CONV_LAYER = "features.24"  # the last max-pool, which the classifier reads; (1, 96, 4, 4)
PENULTIMATE_LAYER = "classifier.1"  # the last hidden ReLU; (1, 96)
HELD_OUT_SEED, HELD_OUT = 1_000_003, 4000


class ShapesNet(SmallVGG):
    """Convolution, batch norm, ReLU and max-pooling as in VGG: images (N, 3, 64, 64) to logits (N, 8).

    >>> import torch
    >>> ShapesNet().eval()(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 8])
    """

    def __init__(self) -> None:
        stages = ((16, False), (16, True), (32, False), (32, True), (64, False), (64, True), (96, True))
        super().__init__(3, stages, 96 * 16, 96, len(CLASSES), dropout=0.2)


def checkpoint_info(path: Path = CHECKPOINT) -> dict:
    """What a checkpoint says of itself: classes, mean, std, seed, images, batch, held_out, held_out_accuracy, torch."""
    return header(path)


def load_shapes_net(path: Path = CHECKPOINT) -> ShapesNet:
    """The trained net in eval mode; the shipped one unless another checkpoint is given.

    Raises ValueError for a checkpoint whose classes or normalisation are not this module's; train it again with
    `python -m specxai.experiments.shapes.train`.
    """
    return loaded(ShapesNet(), path, {"classes": list(CLASSES), "mean": MEAN, "std": STD})
