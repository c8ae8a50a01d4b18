"""Figures 12 and 13: one row an image, one column a method, then our vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from specxai.plots import heatmap
from specxai.plots.heatmap import INK, PERCENTILE

LEGEND = ("Red speaks for the class, blue against it; every map has a scale of its own, our vectors of an image share "
          f"one, which ends at the {PERCENTILE}th percentile of the magnitudes.  Gradient (largest magnitude of a "
          "channel), Grad-CAM and edges have no negative part.  Nothing is smoothed or cut off but Grad-CAM, which is "
          "interpolated as is usual.")


def beside(cases: Sequence, labels: Sequence[str], maps: Sequence[dict[str, Tensor]], vectors: Sequence[Tensor],
           title: str) -> Figure:
    """cases, labels, maps {method: (h, w)}, vectors (k, h, w): one of each a row"""
    methods = list(maps[0])
    count = max(len(one) for one in vectors)
    columns = 1 + len(methods) + count
    figure = Figure(figsize=(1.95 * columns, 0.6 + 2.2 * len(cases)), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK, parse_math=False)
    grid = figure.subplots(len(cases), columns, squeeze=False)
    for axes, case, label, found, ours in zip(grid, cases, labels, maps, vectors, strict=True):
        heatmap.draw_input(axes[0], case.raw.numpy(), image=case.raw.numpy())
        axes[0].set_title(label, fontsize=9, color=INK, parse_math=False)
        for cell, name in zip(axes[1:], methods, strict=False):
            _draw(cell, found[name], name, heatmap.half_range([found[name].numpy()]))
        half = heatmap.half_range([ours.numpy()])
        for place, cell in enumerate(axes[1 + len(methods):]):
            if place < len(ours):
                _draw(cell, ours[place], f"SpecXAI, vector {place + 1}", half)
            else:
                cell.set_axis_off()
    return figure


def _draw(axes, values: Tensor, name: str, half: float) -> None:
    heatmap.draw(axes, torch.as_tensor(values).numpy(), half, half)
    axes.set_title(name, fontsize=8.5, color=INK)
