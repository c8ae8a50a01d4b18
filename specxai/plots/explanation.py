"""The paper's figures 1-3 for one explanation, with the sums and certificates in the title."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from specxai._files import replacing
from specxai._text import printable
from specxai.plots import heatmap
from specxai.plots.axes import legend_handles
from specxai.plots.heatmap import INK, PERCENTILE, SOFT
from specxai.plots.maps import component_map, default_dim
from specxai.plots.spectrum import (
    draw_reduced,
    draw_spectrum,
    draw_waterfall,
    signed,
    subscript,
)
from specxai.spectral.summary import agreement_text

DPI = 130


def plot_explanation(e, path: str | os.PathLike | None = None, *, top: int = 3, image=None,
                     mean: Sequence[float] | float | None = None, std: Sequence[float] | float | None = None,
                     dim: int | Sequence[int] | None = None, title: str | None = None) -> Figure:
    """Input, leading singular vectors by λ and by reduced contribution, full and reduced spectrum, waterfall.

    e          an Explanation
    path       where to write the figure (any format matplotlib knows), by way of a temporary name
    top        vectors per row
    image      the input as people see it: (h, w), (h, w, 3) or (C, h, w)
    mean, std  per channel: undo the input's normalisation when there is no `image`
    dim        axes of the input to contract (23); default the first, channels, and none for an input of one axis or
               of two that look like a picture without channels
    title      first line above the figure; text only, never parsed as a formula

    The maps of the first row are c^k = Σ_c φ_k x (23), which add up to φ_k·x; of the second the contributions
    α_k ĉ^k = ψ_k λ_k c^k (25), which add up to α_k.  Never absolute values.  One scale along a row: ± the 98th
    percentile of |c|, printed beside it.  pyplot is not touched, so this is safe in threads and servers.
    """
    dim = default_dim(e.x.shape) if dim is None else dim
    top = max(1, top)
    figure = Figure(figsize=(max(11.2, 2.45 * (top + 1) + 1.4), 9.4), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05)
    maps, spectra = figure.subfigures(2, 1, height_ratios=[1.5, 1.0], hspace=0.03)
    reduction = e.reduce()
    _maps(maps, e, reduction, top, dim, (image, mean, std))
    left, middle, right = spectra.subplots(1, 3, width_ratios=[1.25, 0.8, 1.15], gridspec_kw={"wspace": 0.09})
    draw_spectrum(e, left, legend=False)
    draw_reduced(e, middle, legend=False)
    draw_waterfall(e, right, legend=False)
    heading = title or f"{printable(e.target_label)} = {e.output:.4g} at layer {printable(e.layer)}"
    # A user's text may hold $ signs; they are not ours to typeset.
    figure.suptitle(heading, fontsize=13.5, fontweight="bold", color=INK, parse_math=False)
    maps.suptitle(certificate(e), fontsize=10.5, color=INK, parse_math=False)
    figure.legend(handles=legend_handles("map or bar"), loc="outside lower center", ncols=2, fontsize=8.5,
                  frameon=False)
    if path is not None:
        with replacing(path) as draft:
            figure.savefig(draft, dpi=DPI)
    return figure


def certificate(e) -> str:
    """Two lines: the output as the sum of all its terms, none left out, and how far to trust it."""
    terms = [("Σα", float(e.alpha.sum())), ("bias", e.bias), ("bypass", e.bypass), ("remainder", e.remainder)]
    parts = [f"{'−' if value < 0 else '+' if place else ''} {name} {abs(value):.{2 if abs(value) < 1e-3 else 4}g}"
             for place, (name, value) in enumerate(terms)]
    checks = [agreement_text(e.agreement, 0), f"exactness {e.exactness:.0e}", f"completeness {e.completeness:.0e}",
              f"{e.method} SVD, {len(e)} components" if len(e) else "no components", f"{e.gates} gates"]
    output = f"{e.output:.5g}".replace("-", "−", e.output < 0)
    return f"{output}  =  " + "  ".join(parts).strip() + "\n" + "   ·   ".join(checks)


def _maps(figure, e, reduction, top: int, dim, picture) -> None:
    """Two rows of maps: the input and the vectors of largest λ; all contributions and the largest survivors."""
    grid = figure.subplots(2, top + 1, squeeze=False)
    leading, dominant = e.top(top, by="lambda"), e.top(top, by="reduced")
    scale = (e.psi * e.S).numpy()
    everything = component_map(e, None, of="contribution", dim=dim)
    heatmap.draw_input(grid[0, 0], e.x.float().numpy(), *picture, flat=everything.ndim < 2)
    names = [f"λ{_k(e, k)} = {e.S[k]:.3g}\nthe map adds up to φ·x = {e.projections[k]:.3g}" for k in leading]
    _row(figure, grid[0], _contract(e, leading, dim), names, "strongest at the layer\n(largest λ)", "φ·x per point")
    contributions = [scale[k] * c for k, c in zip(dominant, _contract(e, dominant, dim), strict=True)]
    names = [f"α{_k(e, k)} = {signed(float(e.alpha[k]))}\n{_survives(value, share, len(group))}"
             for k, value, share, group in zip(dominant, reduction.values.tolist(), reduction.shares.tolist(),
                                               reduction.members, strict=False)]
    _row(figure, grid[1], contributions, names, "most for the output\n(α after cancelling, % of Σα)",
         "part of α per point",
         first=(everything, f"all {len(e)} components\nΣα = {signed(float(e.alpha.sum()))}") if len(e) else None)
    if not len(e):
        grid[1, 0].set_axis_off()


def _k(e, position: int) -> str:
    """The place in the spectrum as a subscript."""
    return subscript(int(e.indices[position]))


def _survives(value: float, share: float, members: int) -> str:
    """What is left of a component after cancelling."""
    if members == 1:
        return f"nothing cancels ({share:.0%})"
    return f"net of {members - 1} {'other' if members == 2 else 'others'}: {signed(value)} ({share:.0%})"


def _row(figure, axes, maps, names, order: str, label: str, first=None) -> None:
    """Maps at one scale with one colour bar; `first` goes into the cell that the input has in the other row."""
    cells = list(zip(axes[1:], maps, names, strict=False))
    if first is not None:
        cells.insert(0, (axes[0], *first))
    for empty in axes[1 + len(maps):]:
        empty.set_axis_off()
    if not cells:
        return
    values = [values for _, values, _ in cells]
    half, limit, shown = heatmap.half_range(values), max(float(np.abs(v).max()) for v in values) or 1.0, None
    for cell, values, name in cells:
        shown = heatmap.draw(cell, values, half, limit) or shown
        cell.set_title(name, fontsize=9, color=INK)
    if len(maps):
        axes[1].set_ylabel(order, fontsize=9, color=INK)
    if shown is not None:
        bar = figure.colorbar(shown, ax=list(axes), shrink=0.86, aspect=22, pad=0.015, extend="both")
        bar.set_label(f"{label}\n±{half:.3g}, the {PERCENTILE}th percentile of |c|", fontsize=8, color=INK, labelpad=7)
        bar.ax.tick_params(labelsize=7.5, color="0.7")
        bar.outline.set(color="0.75", linewidth=0.6)
    else:
        cells[-1][0].set_xlabel(label, fontsize=8, color=SOFT)


def _contract(e, positions: list[int], dim) -> list[np.ndarray]:
    """c^k at some positions only: contracting all would cost a pass over every singular vector."""
    maps = e[positions].contract(dim).float().numpy() if positions else []
    for values in maps:
        if values.ndim > 2:
            raise ValueError(f"the maps have shape {values.shape} after contracting axes {dim}: pass dim= with more "
                             f"axes of the input {tuple(e.x.shape)}, so that one or two are left")
    return list(maps)
