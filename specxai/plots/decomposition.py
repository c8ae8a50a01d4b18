"""The spectrum of a decomposition, with what is known of it."""

from __future__ import annotations

import os

from matplotlib.figure import Figure

from specxai._files import replacing
from specxai._text import printable
from specxai.plots.explanation import DPI
from specxai.plots.heatmap import BLUE, INK, RED, SOFT


def plot_decomposition(d, path: str | os.PathLike | None = None, *, title: str | None = None) -> Figure:
    """λ_k on a logarithmic scale above their residuals, and the bound of what the components leave.

    d       a Decomposition
    path    where to write the figure (any format matplotlib knows), by way of a temporary name
    title   first line; text only, never parsed as a formula

    A λ is known to within its residual: where the two meet nothing is left.  pyplot is not touched.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).eval()
    >>> figure = plot_decomposition(specxai.decompose(net, torch.ones(1, 4), layer="1", rank=2))
    >>> figure.axes[0].get_ylabel()
    'singular value'
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained", facecolor="white")
    axes = figure.subplots()
    figure.suptitle(title or f"{len(d)} components of the map to layer {printable(d.layer)}", fontsize=12,
                    fontweight="bold", color=INK, parse_math=False)
    axes.set_xlabel("k, by descending λ", fontsize=9, color=INK)
    axes.set_ylabel("singular value", fontsize=9, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, color="0.75")
    if len(d):
        k = d.indices.numpy()
        axes.semilogy(k, d.S.numpy(), "o-", ms=3.5, lw=1, color=BLUE, label="λ")
        if bool((d.residuals > 0).any()):
            axes.semilogy(k, d.residuals.numpy(), ".", ms=4, color=RED, label="residual: a true λ lies this near")
        if d.error:
            axes.axhline(d.error, lw=0.9, ls="--", color=SOFT, label="bound of all that is left (Frobenius norm)")
        axes.legend(fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, "no components", transform=axes.transAxes, ha="center", color=SOFT)
    if path is not None:
        with replacing(path) as draft:
            figure.savefig(draft, dpi=DPI)
    return figure
