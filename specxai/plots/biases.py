"""What each layer's bias brings to the output, eq. (9)."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from specxai._text import printable
from specxai.plots.axes import axis_or_new, sign_legend
from specxai.plots.heatmap import INK, signs
from specxai.plots.spectrum import signed, style

__all__ = ["draw_biases"]


def draw_biases(source, axis: Axes | None = None, *, top: int = 8, title: str | None = None, legend: bool = True
                ) -> Axes:
    """Draw the bias of every layer as a bar, first layer on top, and their sum below; returns the axis.

    source  an Explanation, or {layer: number} such as a norm or a share
    top     the layers with the largest |β|; the others share a bar

    >>> axis = draw_biases({"conv1": 0.5, "conv2": -0.2, "fc": 1.0}, top=2)
    >>> [label.get_text() for label in axis.get_yticklabels()]
    ['conv1', 'fc', '1 other layer', 'sum']
    """
    parts = dict(source if isinstance(source, Mapping) else source.bias_contributions)
    if top < 0:
        raise ValueError(f"top={top}: the number of bars cannot be negative")
    leading = set(sorted(parts, key=lambda name: -abs(parts[name]))[:top])
    bars = [(printable(name), float(value)) for name, value in parts.items() if name in leading]
    if others := [float(value) for name, value in parts.items() if name not in leading]:
        bars.append((f"{len(others)} other layer{'s' if len(others) > 1 else ''}", sum(others)))
    total = sum(map(float, parts.values()))
    axis = axis_or_new(axis, (5.0, 0.9 + 0.3 * (len(bars) + 1)))
    values = [value for _, value in bars]
    reach = [0.0, total, *values]
    span = max(reach) - min(reach) or 1.0
    axis.barh(range(len(bars)), values, color=signs(values), height=0.68)
    axis.barh(len(bars), total, color="0.35", height=0.68)
    for place, value in enumerate([*values, total]):
        axis.text(max(value, 0.0) + 0.015 * span, place, signed(value), va="center", fontsize=8, color=INK)
    axis.axvline(0, color="0.5", lw=0.6)
    axis.set_xlim(min(reach) - 0.04 * span, max(reach) + 0.24 * span)
    axis.set_ylim(len(bars) + 0.6, -0.6)
    axis.set_yticks(range(len(bars) + 1), [*(name for name, _ in bars), "sum"])
    for label in axis.get_yticklabels():
        label.set_parse_math(False)
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    style(axis)
    axis.tick_params(axis="y", length=0)
    axis.set_title("bias by layer" if title is None else title, fontsize=10, color=INK, parse_math=False)
    if legend:
        sign_legend(axis, "contribution", inside=True)
    return axis
