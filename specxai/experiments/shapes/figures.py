"""Figures of the shapes: some images with their maps, every metric with its interval, and the randomised weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from specxai.experiments.compare.methods import CONTROLS
from specxai.experiments.shapes.report import BETTER, is_ours
from specxai.plots import heatmap
from specxai.plots.heatmap import BLUE, INK, PERCENTILE, RED, SOFT

LEGEND = ("Red speaks for the class, blue against it; each map's colours end at the "
          f"{PERCENTILE}th percentile of its magnitudes.  Black: the object's outline.")
COLUMNS = 6  # maps side by side: more would be too small on a page
PANELS = 4


def examples(raw: Tensor, masks: Tensor, titles: Sequence[str], maps: Sequence[Mapping[str, Tensor]],
             names: Sequence[str]) -> Figure:
    """raw (N, 3, h, w), masks (N, h, w), maps one dict {method: (h, w)} an image, in as many rows as it takes"""
    lines = -(-(1 + len(names)) // COLUMNS)
    figure = Figure(figsize=(1.95 * COLUMNS, 0.9 + 2.25 * len(raw) * lines), layout="constrained", facecolor="white")
    figure.supxlabel("red speaks for the class, blue against it; gradient and Grad-CAM are magnitudes, so red only; "
                     "black: the object's outline", fontsize=9, color=SOFT)
    grid = figure.subplots(len(raw) * lines, COLUMNS, squeeze=False).reshape(len(raw), lines * COLUMNS)
    for axes, picture, mask, title, found in zip(grid, raw, masks, titles, maps, strict=True):
        heatmap.draw_input(axes[0], picture.numpy(), image=picture.numpy())
        axes[0].set_title(title, fontsize=10, fontweight="bold", color=INK)
        for empty in axes[1 + len(names):]:
            empty.set_axis_off()
        for cell, name in zip(axes[1:], names, strict=False):
            values = found[name].numpy()
            half = heatmap.half_range([values])
            heatmap.draw(cell, values, half, half)
            cell.contour(mask.numpy(), [0.5], colors="k", linewidths=0.6)
            cell.set_title(name.replace(", ", ",\n"), fontsize=9, color=INK)
    return figure


def forest(cells: Mapping[str, Mapping[str, tuple[float, float, float]]], title: str) -> Figure:
    """{method: {metric: (mean, low, high)}} as points with intervals, one panel a metric, ours in red."""
    methods = list(cells)[::-1]
    metrics = [metric for metric in BETTER if metric in cells[methods[0]]]
    lines = -(-len(metrics) // PANELS)
    figure = Figure(figsize=(2.5 * PANELS + 1.8, 1.1 + (0.7 + 0.21 * len(methods)) * lines), layout="constrained",
                    facecolor="white")
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
    panels = figure.subplots(lines, PANELS, sharey=True, squeeze=False).ravel()
    for empty in panels[len(metrics):]:
        empty.set_axis_off()
    figure.legend(handles=[Line2D([], [], color=colour, marker="o", ms=4.5, lw=2.2, label=label) for colour, label in (
        (RED, "SpecXAI, by reading and layer"), (BLUE, "other methods"), (SOFT, "controls that know no network"))],
        loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    for axes, metric in zip(panels, metrics, strict=False):
        for place, name in enumerate(methods):
            mean, low, high = cells[name][metric]
            colour = RED if is_ours(name) else SOFT if name in CONTROLS else BLUE
            axes.plot([low, high], [place, place], color=colour, lw=2.2, solid_capstyle="round")
            axes.plot(mean, place, "o", color=colour, ms=4.5)
        axes.set_yticks(range(len(methods)), methods, fontsize=8)
        axes.set_title(f"{metric}\n({'more' if BETTER[metric] else 'less'} is better)", fontsize=10, color=INK)
        axes.grid(axis="x", alpha=0.3, lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, color="0.75")
    return figure


def cascade(cells: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Figure:
    """{depth: {method: (mean, low, high)}}: how alike the maps stay as more of the weights are drawn anew."""
    depths, methods = list(cells), list(next(iter(cells.values())))
    figure = Figure(figsize=(9.5, 5.2), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for place, name in enumerate(methods):
        means = np.array([cells[depth][name] for depth in depths])
        at = np.arange(len(depths)) + (place / len(methods) - 0.5) * 0.25
        style = "-" if is_ours(name) else ":" if name in CONTROLS else "--"
        axes.errorbar(at, means[:, 0], np.abs(means[:, 1:].T - means[:, 0]), fmt=f"o{style}", ms=3.5, lw=1.2,
                      capsize=2, label=name, color=colormaps["tab20"](place % 20))
    axes.set_xticks(range(len(depths)), depths)
    axes.axhline(0, color="0.6", lw=0.6)
    axes.set_xlabel("weights drawn anew, from the output down", color=INK)
    axes.set_ylabel("rank correlation of |map| with the trained net's", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left", alignment="left",
                title="solid: SpecXAI; dashed: others;\ndotted: controls that know no network", title_fontsize=8)
    return figure


def separation(cells: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Figure:
    """{layer: {measure: (mean, low, high)}}: overlap of the leading vectors, beside a rotated basis of their space."""
    kinds = {"overlap": ("singular vectors, by λ", RED), "overlap, reduced": ("by reduced contribution", "#ef8a62"),
             "overlap, rotated": ("their space in a random basis", SOFT)}
    figure = Figure(figsize=(6.4, 3.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for offset, (kind, (label, colour)) in enumerate(kinds.items()):
        means = np.array([cells[layer][kind] for layer in cells])
        axes.bar(np.arange(len(cells)) + 0.27 * (offset - 1), means[:, 0], 0.25, color=colour, label=label,
                 yerr=np.abs(means[:, 1:].T - means[:, 0]), error_kw={"lw": 1, "capsize": 2})
    axes.set_xticks(range(len(cells)), list(cells))
    axes.set_ylim(0, 1)
    axes.set_ylabel("overlap of the first five\n(0: separate places)", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return figure
