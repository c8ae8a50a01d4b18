"""Heat maps of signed contributions: diverging palette, zero in the middle, red positive, one scale along a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm

PALETTE = "RdBu_r"
RED, BLUE, INK, SOFT = "#b2182b", "#2166ac", "#222831", "#6b7280"
PERCENTILE = 98


def half_range(maps: Sequence[np.ndarray]) -> float:
    """98th percentile of |c| over all maps of a row: a few extreme pixels must not flatten the rest.

    >>> half_range([np.array([-2.0, 2.0]), np.array([2.0])])
    2.0
    """
    values = np.concatenate([np.abs(m).ravel() for m in maps]) if len(maps) else np.zeros(1)
    top = float(np.percentile(values, PERCENTILE))
    # Mostly zeros: the percentile is zero, though the map is not empty.
    return top or float(values.max()) or 1.0


def scale_text(half: float, of_values: bool) -> str:
    """Where the colours end, and whether the values drawn say so or someone else did.

    >>> scale_text(0.5, True), scale_text(0.5, False)
    ('±0.5, the 98th percentile of |value|', '±0.5')
    """
    return f"±{half:.3g}" + (f", the {PERCENTILE}th percentile of |value|" if of_values else "")


def signs(values: np.ndarray) -> list[str]:
    """A colour per value, by its sign."""
    return np.where(np.asarray(values) >= 0, RED, BLUE).tolist()


def draw(axes: Axes, values: np.ndarray, half: float, limit: float):
    """One map: an image (h, w) at ±half, or bars for a one-dimensional input.  Returns the image, None for bars.

    Bars reach to ±limit, the row's largest: cut off at the percentile as colours are, they would be read as shorter.
    """
    if values.ndim == 2:
        image = axes.imshow(values, cmap=PALETTE, norm=CenteredNorm(0, half), interpolation="nearest")
        _frame(axes)
        return image
    values = np.atleast_1d(values).ravel()
    axes.bar(np.arange(len(values)), values, width=0.8 if len(values) <= 64 else 1.0, color=signs(values))
    axes.axhline(0, color="0.6", lw=0.6)
    axes.set_ylim(-1.05 * limit, 1.05 * limit)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    return None


def draw_input(axes: Axes, x: np.ndarray, image=None, mean=None, std=None, flat: bool = False) -> None:
    """The input as people see it: `image` if given, else x with its normalisation undone, else x stretched to 0..1.

    x         (C, h, w) or (h, w); anything else is drawn as bars, and with `flat` (C, n) as C lines
    image     (h, w), (h, w, 3) or a channels-first array or tensor (C, h, w)
    """
    note = "input"
    if image is not None:
        picture = channels_last(np.asarray(image))
    elif flat or x.ndim not in (2, 3):
        if flat and x.ndim > 1:
            axes.plot(x.reshape(-1, x.shape[-1]).T, lw=0.8)
        else:
            axes.bar(np.arange(x.size), x.ravel(), width=0.8 if x.size <= 64 else 1.0, color=SOFT)
        axes.axhline(0, color="0.6", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
        axes.set_title(note, fontsize=10, color=INK)
        return
    elif mean is not None and std is not None:
        wide = (-1,) + (1,) * (x.ndim - 1)
        picture = channels_last(x * np.reshape(std, wide) + np.reshape(mean, wide))
    else:
        picture, note = display_image(x), "input (stretched to 0…1)"
    if np.issubdtype(picture.dtype, np.floating):
        picture = picture.clip(0, 1)
    axes.imshow(picture, cmap="gray", interpolation="nearest", vmin=0,
                vmax=255 if picture.dtype == np.uint8 else 1)
    _frame(axes)
    axes.set_title(note, fontsize=10, color=INK)


def display_image(x: np.ndarray) -> np.ndarray:
    """An input (C, h, w) or (h, w) scaled to [0, 1] for imshow: colour for 3 channels, grey for any other count."""
    x = x.astype(float)
    return channels_last((x - x.min()) / (np.ptp(x) or 1.0))


def channels_last(x: np.ndarray) -> np.ndarray:
    """(C, h, w) as (h, w, 3), or (h, w) for any other count of channels; what is channels-last already stays."""
    if x.ndim == 3 and x.shape[0] == 3 and x.shape[-1] not in (3, 4):
        return x.transpose(1, 2, 0)
    if x.ndim == 3 and x.shape[-1] not in (3, 4):
        return x[..., 0] if x.shape[-1] == 1 else x.mean(0)
    return x


def _frame(axes: Axes) -> None:
    """No ticks and a hairline round the picture: white is zero, and would run into the page."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="0.75", linewidth=0.6)
