"""What the paper says of the squares by eye, as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specxai.experiments.squares.analysis import Analysis, Spectrum

FAINT = 0.01  # of the largest singular value: what lies below has no part in a picture


@dataclass(frozen=True)
class Zones:
    """Masks (h, w) of what every turned square covers, of what only some cover, and of what none does."""

    bulk: Tensor
    edge: Tensor
    outside: Tensor

    @staticmethod
    def of(size: int, side: float) -> Zones:
        """Circles inside and around a square of `side`, a pixel wider since pixels at its edge are partly covered."""
        at = torch.arange(size) - (size - 1) / 2
        radius = (at[:, None] ** 2 + at**2).sqrt()
        bulk, outside = radius < side / 2 - 1, radius > side / math.sqrt(2) + 1
        return Zones(bulk, ~bulk & ~outside, outside)


def energy(part: Tensor, zone: Tensor) -> float:
    """Share of ‖part‖² inside a zone.

    >>> zones = Zones.of(8, 4)
    >>> sum(energy(torch.ones(8, 8), zone) for zone in (zones.bulk, zones.edge, zones.outside))
    1.0
    """
    return ((part * zone).square().sum() / part.square().sum().clamp(min=1e-30)).item()


def cosine(one: Tensor, other: Tensor) -> float:
    """Of two images (h, w)."""
    return F.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0).item()


def share(part: Tensor, output: Tensor) -> float:
    """part · f / ‖f‖² of images (h, w): signed, and over J x and all β_l it sums to 1."""
    return ((part * output).sum() / output.square().sum().clamp(min=1e-30)).item()


def angular(image: Tensor, most: int = 16) -> Tensor:
    """(most + 1,) shares of an image's energy by angular frequency 0, 1, … about its centre; the last has the rest.

    A disc or ring has all of it at 0; a square also at 4, 8, …, since a quarter turn changes nothing.

    >>> at = torch.arange(32) - 15.5
    >>> disc = ((at[:, None] ** 2 + at**2).sqrt() < 10).float()
    >>> angular(disc)[0] > 0.99
    tensor(True)
    """
    size = len(image)
    radius = torch.arange(0.5, size / 2, 0.5)
    angle = torch.arange(256) * (2 * math.pi / 256)
    # grid_sample's coordinates run from −1 to 1 over the image's width.
    grid = torch.stack([radius[:, None] * angle.cos(), radius[:, None] * angle.sin()], -1) / (size / 2)
    polar = F.grid_sample(image.float()[None, None], grid[None], mode="bilinear", align_corners=False)[0, 0]
    power = torch.fft.rfft(polar, dim=1).abs().square() * radius[:, None]
    power[:, 1:-1] *= 2  # of the frequency and its negative
    by_frequency = power.sum(0) / power.sum().clamp(min=1e-30)
    return torch.cat([by_frequency[:most], by_frequency[most:].sum()[None]])


def visible(values: Tensor) -> int:
    """How many singular values reach `FAINT` of the largest."""
    return int((values >= FAINT * values.max()).sum())


def of_spectrum(spectrum: Spectrum, x: Tensor) -> dict[str, float]:
    """Of the first two vectors and of the one with the largest part in the output, at the image x."""
    found = {"visible": visible(spectrum.values), "ratio": (spectrum.values[1] / spectrum.values[0]).item()
             if len(spectrum.values) > 1 else 0.0}
    order = spectrum.coefficients.argsort(descending=True)
    first = int(order[0])
    found |= {"dominant": first, "dominant_share": spectrum.shares[first].item(),
              "two_shares": spectrum.shares[order[:2]].sum().item()}
    if spectrum.left is not None:
        alone = spectrum.coefficients[first] * spectrum.left[first]
        found |= {"left_right": abs(cosine(spectrum.left[first], spectrum.right[first])),
                  "left_input": abs(cosine(spectrum.left[first], x)),
                  "right_input": abs(cosine(spectrum.right[first], x)),
                  "error_of_dominant": ((alone - x).norm() / x.norm()).item()}
    return found


def of_image(analysis: Analysis, zones: Zones, data: Spectrum) -> dict[str, float]:
    """Of the map at one image: its spectrum, c^0 to c^3, how its biases and J x share the output, where each lies."""
    c = F.pad(analysis.spectrum.coefficients, (0, 4))[:4].tolist()
    found = {**of_spectrum(analysis.spectrum, analysis.x), **{f"c{k}": value for k, value in enumerate(c)},
             "error": ((analysis.output - analysis.x).norm() / analysis.x.norm()).item(),
             "exactness": analysis.exactness, "linear_share": share(analysis.linear, analysis.output)}
    if analysis.layers:
        last = list(analysis.layers)[-1]
        decoder = sum(part for name, part in analysis.layers.items() if name.startswith("decoder"))
        found |= {
            "bias_share": share(analysis.bias, analysis.output), "decoder_share": share(decoder, analysis.output),
            "last_share": share(analysis.layers[last], analysis.output),
            "linear_edge": energy(analysis.linear, zones.edge), "bias_edge": energy(analysis.bias, zones.edge),
            "linear_bulk": energy(analysis.linear, zones.bulk), "bias_bulk": energy(analysis.bias, zones.bulk),
            "last_data": abs(cosine(analysis.layers[last], data.right[0])),
            "bias_data": abs(cosine(analysis.bias, data.right[0])),
        }
    return found
