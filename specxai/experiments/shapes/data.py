"""Coloured shapes on clutter, 64 × 64 pixels, with the mask of each object: images whose right explanation is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64  # pixels of the image's side
CLASSES = ("disc", "square", "triangle", "star", "cross", "ring", "crescent", "half-disc")
RADIUS = (9.0, 17.0)  # pixels, of the circle round an object
LINES, DOTS = 10, 8  # of clutter, at most
MEAN, STD = 0.5, 0.25  # an image in [0, 1] is normalised as (image − MEAN) / STD
CHUNK = 256  # images made at once


@dataclass(frozen=True)
class Shapes:
    """Images with their objects.

    Attributes:
        raw: (N, 3, 64, 64) in [0, 1].
        y: (N,) index of the class.
        masks: (N, 64, 64) bool, where the object covers more than half of the pixel.
    """

    raw: Tensor
    y: Tensor
    masks: Tensor

    @property
    def x(self) -> Tensor:
        """(N, 3, 64, 64), normalised for the net."""
        return (self.raw - MEAN) / STD

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows) -> Shapes:
        return Shapes(self.raw[rows], self.y[rows], self.masks[rows])


def shapes(count: int, generator: torch.Generator) -> Shapes:
    """`count` images: class, colour, size, place and rotation of the object are drawn, and so is the clutter.

    The clutter (a smooth background, lines, dots, noise) lies behind the object, in colours from the same
    distribution, and does not depend on the class.

    >>> import torch
    >>> data = shapes(4, torch.Generator().manual_seed(0))
    >>> data.raw.shape, data.masks.shape, bool(data.masks.flatten(1).any(1).all())
    (torch.Size([4, 3, 64, 64]), torch.Size([4, 64, 64]), True)
    """
    if count < 1:
        raise ValueError(f"count={count}: ask for at least one image")
    parts = [_some(min(CHUNK, count - start), generator) for start in range(0, count, CHUNK)]
    return Shapes(*(torch.cat([getattr(part, name) for part in parts]) for name in ("raw", "y", "masks")))


def _some(count: int, generator: torch.Generator) -> Shapes:
    def draw(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    background = _clutter(draw)
    y = torch.randint(len(CLASSES), (count,), generator=generator)
    radius = draw(low=RADIUS[0], high=RADIUS[1])
    free = SIZE / 2 - radius[:, None] - 1
    centre = draw(2, low=-1.0, high=1.0) * free + (SIZE - 1) / 2
    cover = coverage(y, centre, radius, draw(high=2 * math.pi))
    colour = _contrasting(draw(4, 3), background.mean((2, 3)))
    shade = 1 + 0.25 * _smooth(draw(1, 3, 3, low=-1.0))  # an object is not of one colour
    painted = (colour[:, :, None, None] * shade).clamp(0, 1)
    raw = torch.lerp(background, painted, cover[:, None])
    raw = raw + 0.03 * torch.randn(raw.shape, generator=generator)
    return Shapes(raw.clamp(0, 1), y, cover > 0.5)


def coverage(y: Tensor, centre: Tensor, radius: Tensor, angle: Tensor) -> Tensor:
    """Share of each pixel (N, 64, 64) that the objects cover, to first order.

    y (N,) classes; centre (N, 2) row and column; radius (N,) in pixels; angle (N,) in radians
    """
    at = torch.arange(SIZE, dtype=centre.dtype)
    down, right = at[:, None] - centre[:, 0, None, None], at[None, :] - centre[:, 1, None, None]
    cos, sin, scale = angle.cos()[:, None, None], angle.sin()[:, None, None], radius[:, None, None]
    u, v = (right * cos + down * sin) / scale, (down * cos - right * sin) / scale
    outside = torch.empty_like(u)
    for index, name in enumerate(CLASSES):
        rows = y == index
        outside[rows] = _OUTSIDE[name](u[rows], v[rows])
    return (0.5 - outside * scale).clamp(0, 1)


def _star(u: Tensor, v: Tensor) -> Tensor:
    """Five points at distance 1, five notches at 0.42: in each fifth, a half-plane through a point and a notch."""
    fifth = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(v, u) + fifth / 2, fifth) - fifth / 2
    length = torch.hypot(u, v)
    along, across = length * angle.cos(), length * angle.abs().sin()
    notch = 0.42 * math.cos(fifth / 2), 0.42 * math.sin(fifth / 2)
    normal = notch[1], 1 - notch[0]
    size = math.hypot(*normal)
    return ((along - 1) * normal[0] + across * normal[1]) / size


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    sides = [u * math.cos(a) + v * math.sin(a) for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    return torch.stack(sides).amax(0) - 0.5


def _cross(u: Tensor, v: Tensor) -> Tensor:
    u, v = u.abs(), v.abs()
    return torch.minimum(torch.maximum(u - 0.95, v - 0.3), torch.maximum(u - 0.3, v - 0.95))


# How far outside of the object a point is, in radii, negative inside.
_OUTSIDE = {
    "disc": lambda u, v: torch.hypot(u, v) - 0.9,
    "square": lambda u, v: torch.maximum(u.abs(), v.abs()) - 0.7,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": lambda u, v: (torch.hypot(u, v) - 0.75).abs() - 0.22,
    "crescent": lambda u, v: torch.maximum(torch.hypot(u, v) - 1, 0.8 - torch.hypot(u - 0.5, v)),
    "half-disc": lambda u, v: torch.maximum(torch.hypot(u, v) - 1, -u),
}


def _clutter(draw) -> Tensor:
    """(N, 3, 64, 64): smooth colours, then lines and dots on them."""
    picture = 0.5 + 0.6 * (_smooth(draw(3, 4, 4)) - 0.5) + 0.35 * (_smooth(draw(3, 16, 16)) - 0.5)
    at = torch.arange(SIZE, dtype=picture.dtype)
    for index in range(LINES + DOTS):
        place, colour, shown = draw(2, high=SIZE), draw(3), draw() < 0.75
        down, right = at[:, None] - place[:, 0, None, None], at[None, :] - place[:, 1, None, None]
        if index < LINES:
            angle, length = draw(high=math.pi), draw(low=4.0, high=14.0)
            cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
            along, across = (right * cos + down * sin).abs(), (down * cos - right * sin).abs()
            width = draw(low=0.5, high=1.5)[:, None, None]
            outside = torch.maximum(along - length[:, None, None], across - width)
        else:
            outside = torch.hypot(down, right) - draw(low=1.0, high=4.0)[:, None, None]
        cover = (0.5 - outside).clamp(0, 1) * shown[:, None, None]
        picture = torch.lerp(picture, colour[:, :, None, None].expand_as(picture), cover[:, None])
    return picture


def _smooth(coarse: Tensor) -> Tensor:
    return F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False)


def _contrasting(candidates: Tensor, ground: Tensor) -> Tensor:
    """Of the colours (N, c, 3) the one farthest from `ground` (N, 3): an object that no one can see has no class."""
    best = (candidates - ground[:, None]).norm(dim=2).argmax(1)
    return candidates[torch.arange(len(candidates)), best]
