"""Image files as model inputs: each model's own size, crop and normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Transform:
    """How a picture becomes an input: shorter side to `resize`, centre square of `size`, (p − mean) / std.

    One mean and std per channel; one channel means grey.
    """

    size: int = 224
    resize: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    @property
    def channels(self) -> int:
        return len(self.mean)

    def normalise(self, pixels: np.ndarray) -> Tensor:
        """(size, size, channels) in [0, 1] -> (1, channels, size, size)."""
        x = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
        mean, std = (torch.tensor(v, dtype=x.dtype).reshape(1, -1, 1, 1) for v in (self.mean, self.std))
        return ((x - mean) / std).contiguous()


def read_image(path: Path, transform: Transform) -> np.ndarray:
    """An image file as (size, size, channels) float32 in [0, 1]: shorter side resized, centre cropped.

    Raises FileNotFoundError or ValueError, naming the remedy.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise FileNotFoundError(f"no image file {path}: pass --image with the path of a PNG or JPEG")
    try:
        with Image.open(path) as opened:
            # Cameras store sideways pictures with a note to turn them.
            picture = ImageOps.exif_transpose(opened).convert("RGB" if transform.channels == 3 else "L")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not an image that Pillow can read: convert it to PNG or JPEG") from error
    size, scale = transform.size, max(transform.size, transform.resize) / min(picture.size)
    how = getattr(Image.Resampling, transform.interpolation.upper(), Image.Resampling.BILINEAR)
    picture = picture.resize([max(size, round(side * scale)) for side in picture.size], how)
    left, top = ((side - size) // 2 for side in picture.size)
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    return pixels.reshape(size, size, transform.channels)
