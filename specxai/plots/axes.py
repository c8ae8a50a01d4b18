"""What every drawing shares: a new axis where none is given, a legend of the two colours, how maps are shown."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from specxai.plots.heatmap import BLUE, INK, RED

__all__ = ["MEANINGS", "axis_or_new", "colour_bar", "displayed", "legend_handles", "sign_legend"]

# What red and blue mean, by what is drawn.
MEANINGS = {
    "projection": ("red: φ·x > 0 here", "blue: φ·x < 0 here"),
    "contribution": ("red: adds to the output", "blue: takes away"),
    "average": ("red: φ > 0", "blue: φ < 0"),
    "values": ("red > 0", "blue < 0"),
    "map or bar": ("red > 0: adds", "blue < 0: takes away"),
}


def axis_or_new(axis: Axes | None, size: tuple[float, float] = (5.0, 3.6), **kind) -> Axes:
    """`axis`, or one on a new figure of so many inches; pyplot is not touched.  `kind` is for `Figure.add_subplot`."""
    if axis is not None:
        return axis
    return Figure(figsize=size, layout="constrained", facecolor="white").add_subplot(**kind)


def legend_handles(of: str) -> list[Patch]:
    """What the two colours mean, as entries of a legend."""
    return [Patch(color=color, label=label) for color, label in zip((RED, BLUE), MEANINGS[of], strict=True)]


def sign_legend(axis: Axes, of: str, inside: bool = False) -> None:
    """Say what red and blue mean: below the axis, or inside it where there is room."""
    where = {"loc": "best"} if inside else {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01), "ncols": 2,
                                            "columnspacing": 1.0, "borderaxespad": 0.2}
    axis.legend(handles=legend_handles(of), fontsize=7.5, frameon=False, labelcolor=INK, handlelength=1.0, **where)


def colour_bar(axis: Axes, image, label: str, **options) -> None:
    """A colour bar as high as the picture beside it, whose axis may be larger; `options` of `Figure.colorbar`."""
    bar = axis.figure.colorbar(image, cax=axis.inset_axes([1.03, 0.05, 0.035, 0.9]), **options)
    bar.set_label(label, fontsize=7, color=INK)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set(color="0.75", linewidth=0.6)


def displayed(values: np.ndarray, smooth: float = 0.0, threshold: float = 0.0) -> tuple[np.ndarray, str]:
    """A map as it is shown, and the words for it, which are empty where nothing was done.

    smooth     standard deviation of a Gaussian, in pixels
    threshold  what is smaller than this share of the largest |value| is drawn as zero; after smoothing

    >>> displayed(np.array([4.0, -1.0, 3.0]), threshold=0.5)
    (array([4., 0., 3.]), 'below 50% of the largest: not drawn')
    """
    if smooth < 0 or not 0 <= threshold < 1:
        raise ValueError(f"smooth={smooth:g} must not be negative, threshold={threshold:g} must be from 0 to below 1")
    notes = []
    if smooth:
        from scipy.ndimage import gaussian_filter

        values = gaussian_filter(np.asarray(values, dtype=float), smooth)
        notes.append(f"smoothed, σ = {smooth:g} pixels")
    if threshold:
        values = np.where(np.abs(values) >= threshold * np.abs(values).max(initial=0), values, 0.0)
        notes.append(f"below {threshold:.0%} of the largest: not drawn")
    return values, "; ".join(notes)
