"""What a map (h, w) is measured by, where the object's place is known.  Each has a second route in the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESAMPLES = 2000
STEPS = 16  # of insertion and deletion
BLUR = 6.0  # pixels, standard deviation of the picture that insertion starts from and deletion ends at


def pointing(values: Tensor, mask: Tensor) -> float:
    """The pointing game: 1 where the map's largest value lies on the object, mask (h, w), else 0."""
    return float(mask.flatten()[values.flatten().argmax()])


def inside(values: Tensor, mask: Tensor) -> float:
    """Share of the positive contribution that lies on the object; 0 for a map with no positive part."""
    positive = values.clamp(min=0)
    whole = float(positive.sum())
    return float(positive[mask].sum()) / whole if whole else 0.0


def extent(values: Tensor, share: float = 0.9) -> float:
    """The smallest share of the pixels that holds `share` of Σ|values|: 1/hw for one pixel, 0 for an empty map."""
    ordered = values.abs().flatten().sort(descending=True).values.cumsum(0)
    if not ordered[-1] > 0:
        return 0.0
    return float((ordered < share * ordered[-1]).sum() + 1) / len(ordered)


def overlap(maps: Sequence[Tensor], sigma: float = 2.0) -> float:
    """Mean cosine of |map| over all pairs of maps, blurred by `sigma` pixels: 0 for maps in separate places, 1 in one.

    Blurred, as neighbouring pixels of different colour are one place.
    """
    flat = [blurred(m.abs(), sigma).flatten() for m in maps]
    pairs = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in combinations(flat, 2)]
    return sum(pairs) / len(pairs) if pairs else math.nan


def rotated(vectors: Tensor, generator: torch.Generator) -> Tensor:
    """Vectors (k, n) turned by a random rotation among themselves: an orthonormal basis of the same space, the control
    of `overlap`, which says what the singular vectors' own directions add."""
    mixed = torch.linalg.qr(torch.randn(len(vectors), len(vectors), generator=generator, dtype=torch.float64))[0]
    return (mixed @ vectors.double()).to(vectors)


def blurred(values: Tensor, sigma: float) -> Tensor:
    """(..., h, w) under a Gaussian of `sigma` pixels, edges repeated."""
    reach = math.ceil(3 * sigma)
    line = torch.exp(-torch.arange(-reach, reach + 1, dtype=values.dtype) ** 2 / (2 * sigma**2))
    line = line / line.sum()
    flat = values.reshape(-1, 1, *values.shape[-2:])
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), line.reshape(1, 1, -1, 1))
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), line.reshape(1, 1, 1, -1))
    return flat.reshape(values.shape)


@torch.no_grad()
def curve(net: nn.Module, x: Tensor, values: Tensor, target: int, insertion: bool, seed: int,
          steps: int = STEPS) -> Tensor:
    """(steps + 1,) float64 probabilities of the class as pixels are inserted or deleted, largest value first.

    x (1, 3, h, w).  Insertion starts from a blurred image and puts pixels back, deletion blurs them; equal values come
    in a random order, from `seed`.
    """
    count = values.numel()
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    order = shuffled[values.flatten()[shuffled].argsort(descending=True, stable=True)]
    rank = torch.empty(count, dtype=torch.long)
    rank[order] = torch.arange(count)
    limits = torch.linspace(0, count, steps + 1).round().long()
    taken = (rank[None] < limits[:, None]).reshape(-1, 1, *x.shape[-2:])
    veil = blurred(x, BLUR)
    pictures = torch.where(taken if insertion else ~taken, x, veil)
    return net(pictures).softmax(1)[:, target].double()


def area(probabilities: Tensor) -> float:
    """Under a curve over [0, 1], by trapezoids.  Insertion: more is better; deletion: less."""
    return float(torch.trapezoid(probabilities, dx=1 / (len(probabilities) - 1)))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation of two maps of magnitudes; 0 where one is constant."""
    ranks = [_ranks(m.flatten().numpy()) for m in (a, b)]
    centred = [r - r.mean() for r in ranks]
    scale = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
    return float(centred[0] @ centred[1]) / scale if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts - 1) / 2)[inverse]


def bootstrap(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """(mean, low, high): the mean over images and its 95 % percentile interval; NaN where there is no value."""
    values = np.asarray([v for v in values if not math.isnan(v)], dtype=float)
    if not len(values):
        return math.nan, math.nan, math.nan
    rows = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.percentile(values[rows].mean(1), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)
