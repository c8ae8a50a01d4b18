"""Heat maps of signed contributions: diverging palette, zero in the middle, red positive, one scale along a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm

PALETTE = "RdBu_r"
PERCENTILE = 98


def half_range(maps: Sequence[np.ndarray]) -> float:
    """98th percentile of |c| over all maps of a row: a few extreme pixels must not flatten the rest."""
    values = np.concatenate([np.abs(m).ravel() for m in maps]) if len(maps) else np.zeros(1)
    top = float(np.percentile(values, PERCENTILE))
    return top or float(values.max()) or 1.0


def draw(axes: Axes, values: np.ndarray, half: float):
    """One map: an image (h, w), or a line for one-dimensional inputs."""
    if values.ndim == 2:
        image = axes.imshow(values, cmap=PALETTE, norm=CenteredNorm(0, half), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        return image
    values = np.atleast_1d(values).ravel()
    axes.bar(np.arange(len(values)), values, width=1.0, color=np.where(values >= 0, "#b2182b", "#2166ac"))
    axes.axhline(0, color="0.6", lw=0.6)
    return None


def display_image(x: np.ndarray) -> np.ndarray:
    """An input (C, h, w) or (h, w) scaled to [0, 1] for imshow: colour for 3 channels, grey for any other count."""
    x = x.astype(float)
    x = (x - x.min()) / (np.ptp(x) or 1.0)
    if x.ndim == 3:
        return x.transpose(1, 2, 0) if x.shape[0] == 3 else x.mean(0)
    return x
