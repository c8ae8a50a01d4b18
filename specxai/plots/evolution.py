"""One input through the depth of a network: the paper's figures 6 and 7."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from specxai._text import printable
from specxai.plots import heatmap
from specxai.plots.axes import axis_or_new, sign_legend
from specxai.plots.heatmap import INK, SOFT, signs
from specxai.plots.maps import component_map
from specxai.plots.spectrum import signed, subscript

__all__ = ["draw_evolution"]

SHOWN = 12  # components of a spectrum


def draw_evolution(explanations: Sequence, axis: Axes | None = None, *, top: int = 1, by: str = "reduced",
                   dim: int | Sequence[int] | None = None, labels: Sequence[str] | None = None,
                   draw: Callable[[Axes, object, int], object] | None = None, projection: str | None = None,
                   title: str | None = None, legend: bool = True) -> Axes:
    """Draw one output explained at several layers, left to right: the top vectors' contributions above the spectrum.

    explanations  Explanations of one input and target, in the order of depth
    axis          where to draw, whose frame is hidden; the panels are insets of it (`axis.child_axes`), row by row
    top, by       so many vectors of each, as `Explanation.top` orders them: "lambda", "alpha" or "reduced"
    dim           of `component_map`
    labels        names of the columns; default: the layers'
    draw          called as draw(panel, explanation, k) instead of drawing the map, for inputs that are no pictures;
                  `projection`, such as "3d", is what its panels are made with
    legend        say below what red means

    The maps of a column share a scale of their own.  In the spectra grey is λ / λ₀, red and blue are α / max |α|, so
    that they can be compared over the layers; the first twelve components are shown.  Returns the axis.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4), torch.nn.ReLU()).eval()
    >>> items = [specxai.explain(net, torch.ones(1, 6), layer=name, target=0) for name in ("1", "2")]
    >>> len(draw_evolution(items, top=2).child_axes)
    6
    """
    if not explanations or top < 1:
        raise ValueError(f"{len(explanations)} explanations and top={top}: give at least one of each")
    labels = [printable(e.layer) for e in explanations] if labels is None else labels
    if len(labels) != len(explanations):
        raise ValueError(f"{len(labels)} labels for {len(explanations)} explanations: give one each")
    columns = len(explanations)
    axis = axis_or_new(axis, (2.6 * columns + 0.4, 2.5 * top + 2.0))
    axis.set_axis_off()
    height, width = 1 / (top + 0.72), 1 / columns
    for row in range(top):
        for column, e in enumerate(explanations):
            panel = axis.inset_axes([(column + 0.05) * width, 1 - (row + 0.95) * height, 0.9 * width, 0.76 * height],
                                    **({"projection": projection} if projection else {}))
            _vector(panel, e, e.top(top, by), row, dim, draw)
            if row == 0:
                panel.set_title(f"{labels[column]}\n{panel.get_title()}", fontsize=9, color=INK, parse_math=False)
    for column, e in enumerate(explanations):
        panel = axis.inset_axes([(column + 0.1) * width, 0.12 * height, 0.82 * width, 0.5 * height])
        _spectrum(panel, e, first=column == 0)
    axis.set_title(f"{printable(explanations[0].target_label)} at {columns} layers" if title is None else title,
                   fontsize=10, color=INK, parse_math=False)
    if legend:
        sign_legend(axis, "contribution")
    return axis


def _vector(panel: Axes, e, order: list[int], row: int, dim, draw) -> None:
    if row >= len(order):
        panel.set_axis_off()
        panel.set_title("none left", fontsize=8, color=SOFT)
        return
    k = order[row]
    if draw is not None:
        draw(panel, e, k)
    else:
        maps = [component_map(e, one, of="contribution", dim=dim) for one in order]
        half = heatmap.half_range(maps)
        if heatmap.draw(panel, maps[row], half, max(abs(m).max(initial=0) for m in maps) or 1.0) is not None:
            panel.set_xlabel(heatmap.scale_text(half, True), fontsize=6.5, color=SOFT)
    panel.set_title(f"α{subscript(int(e.indices[k]))} = {signed(float(e.alpha[k]))}", fontsize=8.5, color=INK)


def _spectrum(panel: Axes, e, first: bool) -> None:
    k, alpha, values = (t[:SHOWN].numpy() for t in (e.indices, e.alpha, e.S))
    if len(k):
        panel.bar(k, values / (values.max() or 1.0), width=0.9, color="0.87")
        panel.bar(k, alpha / (abs(alpha).max() or 1.0), width=0.55, color=signs(alpha))
    panel.axhline(0, color="0.5", lw=0.6)
    panel.set(ylim=(-1.08, 1.08), xlim=(-0.7, SHOWN - 0.3), yticks=[-1, 0, 1])
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=7, color="0.75")
    if first:
        panel.set_ylabel("λ (grey), α\nrelative", fontsize=7.5, color=INK)
    panel.set_xlabel(f"k, {min(len(e), SHOWN)} of {len(e)}", fontsize=7.5, color=INK)
