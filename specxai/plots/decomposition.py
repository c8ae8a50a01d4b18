"""The spectrum of a decomposition, with what is known of it."""

from __future__ import annotations

import os

from matplotlib.figure import Figure

from specxai._files import replacing
from specxai._text import printable
from specxai.plots.explanation import DPI
from specxai.plots.heatmap import INK
from specxai.plots.spectrum import draw_spectrum


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
    figure.suptitle(title or f"{len(d)} components of the map to layer {printable(d.layer)}", fontsize=12,
                    fontweight="bold", color=INK, parse_math=False)
    draw_spectrum(d, figure.subplots())
    if path is not None:
        with replacing(path) as draft:
            figure.savefig(draft, dpi=DPI)
    return figure
