"""Figures 12 and 13: one row an image, one column a method, then our vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from specxai.plots import heatmap
from specxai.plots.heatmap import INK, PERCENTILE, SOFT

LEGEND = ("Red speaks for the class, blue against it; every map has a scale of its own, our vectors of an image share "
          f"one, which ends at the {PERCENTILE}th percentile of the magnitudes.  Gradient (largest magnitude of a "
          "channel), Grad-CAM and edges have no negative part.  Nothing is smoothed or cut off but Grad-CAM, which is "
          "interpolated as is usual.")


COLUMNS = 6  # maps side by side: more would be too small on a page
NOTE = ("red speaks for the class, blue against it; gradient, Grad-CAM and edges are magnitudes, so red only;\n"
        "every map has a scale of its own, the vectors of an image share one")


def beside(cases: Sequence, labels: Sequence[str], maps: Sequence[dict[str, Tensor]], vectors: Sequence[Tensor],
           title: str) -> Figure:
    """cases, labels, maps {method: (h, w)}, vectors (k, h, w): one of each an image, in as many rows as it takes"""
    count = max(len(one) for one in vectors)
    lines = -(-(1 + len(maps[0]) + count) // COLUMNS)
    figure = Figure(figsize=(1.95 * COLUMNS, 1.0 + 2.2 * len(cases) * lines), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, parse_math=False)
    figure.supxlabel(NOTE, fontsize=9, color=SOFT)
    grid = figure.subplots(len(cases) * lines, COLUMNS, squeeze=False).reshape(len(cases), lines * COLUMNS)
    for axes, case, label, found, ours in zip(grid, cases, labels, maps, vectors, strict=True):
        heatmap.draw_input(axes[0], case.raw.numpy(), image=case.raw.numpy())
        axes[0].set_title(label, fontsize=10, fontweight="bold", color=INK, parse_math=False)
        half = heatmap.half_range([ours.numpy()])
        drawn = [(name, one, heatmap.half_range([one.numpy()])) for name, one in found.items()]
        drawn += [(f"SpecXAI, vector {place + 1}", one, half) for place, one in enumerate(ours)]
        for cell, one in zip(axes[1:], drawn, strict=False):
            _draw(cell, *one)
        for cell in axes[1 + len(drawn):]:
            cell.set_axis_off()
        if len(ours) < count:
            axes[1 + len(drawn)].text(0.5, 0.5, "no more vectors\nsurvive (21)", ha="center", va="center", fontsize=9,
                                      color=SOFT)
    return figure


def _draw(axes, name: str, values: Tensor, half: float) -> None:
    heatmap.draw(axes, torch.as_tensor(values).numpy(), half, half)
    axes.set_title(name, fontsize=9.5, color=INK)
