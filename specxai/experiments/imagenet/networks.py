"""The classifiers of section 2.1, with the layers that the paper explains, and the images they are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from specxai._vision import import_vision
from specxai._weights import load_weights
from specxai.experiments import photographs as bundled
from specxai.experiments.photographs import Photograph, load_efficientnet, photograph, photographs

DEFAULT = "DEFAULT"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Network:
    """A classifier to explain.

    layers    {"penultimate": …, "last convolution": …}, by name
    trained   False for weights at random: then only the mechanics are shown, and nothing of the pictures means anything
    """

    name: str
    net: nn.Module
    layers: dict[str, str]
    mean: Sequence[float]
    std: Sequence[float]
    trained: bool

    def at(self, image: Photograph) -> Photograph:
        """The same pixels, normalised as this network wants them."""
        return Photograph(image.name, image.raw, self.mean, self.std)


# Figures 1-3: the layer before the output, and the last of the convolutions.
PAPER = {"alexnet": {"penultimate": "classifier.5", "last convolution": "features.12"},
         "vgg11_bn": {"penultimate": "classifier.5", "last convolution": "features.28"}}


def efficientnet() -> Network:
    """EfficientNet-Lite0 with the weights of its package."""
    layers = {"penultimate": bundled.PENULTIMATE_LAYER, "last convolution": bundled.LAST_CONV_LAYER}
    return Network("efficientnet_lite0", load_efficientnet(), layers, (bundled.MEAN,) * 3, (bundled.STD,) * 3, True)


def torchvision_network(name: str, weights: str | None, seed: int) -> Network:
    """AlexNet or VGG11 with batch norm: `weights` None for random ones, DEFAULT for torchvision's, or a file.

    Raises ValueError where the file does not fit or nothing can be downloaded.
    """
    models = import_vision("torchvision.models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            net = models.get_model(name, weights=DEFAULT if weights == DEFAULT else None)
        except Exception as error:  # each way of downloading has errors of its own
            if weights != DEFAULT:
                raise
            raise ValueError(f"the trained weights of {name} cannot be downloaded ({error}): get the file another way "
                             "and pass --weights FILE") from error
    if weights not in (None, DEFAULT):
        load_weights(net, Path(weights))
    return Network(name, net.eval(), PAPER[name], IMAGENET_MEAN, IMAGENET_STD, weights is not None)


def fitting(weights: str) -> str:
    """Which of the paper's networks a file of weights belongs to.  Raises ValueError where it is neither's."""
    causes = []
    for name in PAPER:
        try:
            torchvision_network(name, weights, 0)
        except ValueError as error:
            causes.append(f"{name}: {error}")
        else:
            return name
    raise ValueError(f"{weights} holds the weights of none of {', '.join(PAPER)}. " + " ".join(causes))


def images(paths: Sequence[str], quick: bool) -> list[Photograph]:
    """The user's images, or the bundled photographs, of a quick run the first two.

    Raises FileNotFoundError or ValueError for a file that is no image.
    """
    if not paths:
        return photographs(bundled.NAMES[:2] if quick else bundled.NAMES)
    names = [Path(path).stem for path in paths]
    return [photograph(_read(Path(path)), name if names.count(name) == 1 else f"{name}-{place}")
            for place, (path, name) in enumerate(zip(paths, names, strict=True))]


def _read(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise FileNotFoundError(f"no image {path}: pass files such as cat.jpg with --images")
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a readable image ({error})") from error
