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
    from PIL import Image

    if not path.is_file():
        raise FileNotFoundError(f"no image file {path}: pass --image with the path of a PNG or JPEG")
    try:
        with Image.open(path) as opened:
            picture = _as_seen(opened, "RGB" if transform.channels == 3 else "L")
    # Pillow's readers raise what they come across in a damaged file.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not an image that Pillow can read: convert it to PNG or JPEG") from error
    size, scale = transform.size, max(transform.size, transform.resize) / min(picture.size)
    if scale * max(picture.size) > _LONGEST:
        raise ValueError(f"{path} is {picture.width} x {picture.height} pixels, too long for a square of {size}: crop "
                         "it first")
    how = getattr(Image.Resampling, transform.interpolation.upper(), Image.Resampling.BILINEAR)
    picture = picture.resize([max(size, round(side * scale)) for side in picture.size], how)
    left, top = ((side - size) // 2 for side in picture.size)
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    return pixels.reshape(size, size, transform.channels)


_LONGEST = 50_000  # pixels of a resized side


def _as_seen(opened, mode: str):
    """An opened picture in "RGB" or "L" as a viewer shows it: upright, on white where transparent, 16 bits as 8."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(opened)  # cameras store sideways pictures with a note to turn them
    if picture.mode.startswith("I"):  # Pillow's own conversion cuts off all above 255
        return Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype(np.uint8)).convert(mode)
    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert(mode)
