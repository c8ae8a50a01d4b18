"""Figures 1-3 (vectors and spectra, one row an image) and 11 (contracted beside averaged)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from specxai.plots import heatmap
from specxai.plots.heatmap import INK, PERCENTILE, SOFT
from specxai.plots.spectrum import signed, subscript

LEGEND = (f"The colours of a row of maps end at the {PERCENTILE}th percentile of their magnitudes; nothing is smoothed "
          "or cut off.")
SHOWN = 10  # survivors of a reduced spectrum


def vectors(rows: Sequence[tuple], title: str) -> Figure:
    """rows   (photograph, reading, part) with the parts of `taken_apart`; two lines of the figure each"""
    figure = Figure(figsize=(12.4, 1.1 + 4.75 * len(rows)), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK, parse_math=False)
    figure.supxlabel("upper maps: red where a pixel's part of φ·x is positive, blue where it is negative;\n"
                     "lower maps and bars: red adds to the class's output, blue takes away", fontsize=9, color=SOFT)
    grid = figure.subplots(2 * len(rows), 5, squeeze=False, width_ratios=[1] * 4 + [1.2]).reshape(len(rows), 2, 5)
    for (upper, lower), (picture, reading, part) in zip(grid, rows, strict=True):
        _input(upper[0], picture, reading)
        upper[1].set_ylabel("largest λ", fontsize=9.5, color=INK)
        names = [f"λ{subscript(k)} = {part['S'][k]:.3g}   φ·x = {float(p):.2g}"
                 for k, p in zip(part["leading"], part["projections"], strict=True)]
        maps(upper[1:4], part["strongest"].numpy(), names)
        lower[0].set_axis_off()
        lower[1].set_ylabel("most for the class\nafter cancelling", fontsize=9.5, color=INK)
        names = [f"α{subscript(k)} = {signed(float(part['alpha'][k]))}   {float(share):.0%}"
                 for k, share in zip(part["dominant"], part["shares"], strict=False)]
        maps(lower[1:4], part["contributing"].numpy(), names)
        for empty in lower[1 + len(part["contributing"]):4]:
            empty.text(0.5, 0.5, "no more vectors\nsurvive (21)", ha="center", va="center", fontsize=9, color=SOFT)
        _full(upper[4], part)
        _reduced(lower[4], part)
        upper[4].set_title("α (bars), λ (grey), by k", fontsize=9.5, color=INK)
        lower[4].set_title("reduced α̂, by size; below, k", fontsize=9.5, color=INK)
    return figure


def averaged(rows: Sequence[tuple], title: str) -> Figure:
    """rows   (photograph, {layer: part}): the top contributing vector, contracted and averaged"""
    layers = list(rows[0][1])
    figure = Figure(figsize=(2.3 * (1 + 2 * len(layers)), 0.9 + 2.35 * len(rows)), layout="constrained",
                    facecolor="white")
    figure.suptitle(f"{title}: top contributing vector", fontsize=13, fontweight="bold", color=INK, parse_math=False)
    figure.supxlabel("red adds to the class's output, blue takes away; an averaged map has the sign of its "
                     "contribution, and no more of it", fontsize=8.5, color=SOFT)
    grid = figure.subplots(len(rows), 1 + 2 * len(layers), squeeze=False)
    for axes, (picture, parts) in zip(grid, rows, strict=True):
        _input(axes[0], picture, picture.name)
        for place, layer in enumerate(layers):
            for offset, kind in enumerate(("contributing", "averaged")):
                name = f"{layer}:\n{'contracted' if kind == 'contributing' else 'averaged'}"
                maps(axes[1 + 2 * place + offset:][:1], parts[layer][kind][:1].numpy(), [name])
    return figure


def maps(axes: Sequence[Axes], values: np.ndarray, names: Sequence[str]) -> None:
    """Maps side by side, one scale; cells without a map stay empty."""
    shown = list(zip(axes, values, names, strict=False))
    for empty in axes[len(shown):]:
        empty.set_axis_off()
    half = heatmap.half_range([one for _, one, _ in shown])
    for cell, one, name in shown:
        heatmap.draw(cell, one, half, half)
        cell.set_title(name, fontsize=9, color=INK, parse_math=False)


def _input(axes: Axes, picture, reading: str) -> None:
    heatmap.draw_input(axes, picture.raw.numpy(), image=picture.raw.numpy())
    axes.set_title(reading, fontsize=10, fontweight="bold", color=INK, parse_math=False)


def _full(axes: Axes, part: dict) -> None:
    alpha, values = part["alpha"].numpy(), part["S"].numpy()
    twin = axes.twinx()
    twin.bar(np.arange(len(values)), values, width=1.0, color="0.88")
    twin.set_yticks([])
    twin.spines[:].set_visible(False)
    axes.set_zorder(twin.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.bar(np.arange(len(alpha)), alpha, color=heatmap.signs(alpha), width=0.9)
    limit = float(np.abs(alpha).max()) * 1.08 or 1.0
    axes.set_ylim(-limit, limit)
    top = float(values.max()) * 1.08 or 1.0
    twin.set_ylim(-top, top)  # both zeros at one height
    _plain(axes)


def _reduced(axes: Axes, part: dict) -> None:
    values = part["values"].numpy()[:SHOWN]
    axes.bar(np.arange(len(values)), values, color=heatmap.signs(values), width=0.8)
    axes.set_xticks(range(len(values)), [str(k) for k in part["dominant"][:SHOWN]])
    axes.set_xlim(-0.7, max(len(values) - 0.3, 5.7))  # one bar alone is not to fill the picture
    hidden = len(part["values"]) - len(values)
    if hidden:
        free = 0.9 if values.sum() > 0 else 0.04  # bars stand or hang
        axes.text(0.98, free, f"{hidden} smaller", transform=axes.transAxes, ha="right", fontsize=7.5, color=SOFT)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.axhline(0, color="0.5", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7, color="0.75")
    axes.yaxis.set_major_locator(MaxNLocator(4))
