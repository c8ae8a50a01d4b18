"""Figures 8 and 9 of the paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from specxai.experiments.squares.analysis import Analysis, Spectrum
from specxai.plots import heatmap
from specxai.plots.heatmap import PERCENTILE

COLUMNS = 4
SHOWN = 40  # values of the data's spectrum that are drawn
DARK, ACCENT = "#2f3e4e", heatmap.RED
LEGEND = f"red positive, blue negative; a colour bar ends at the {PERCENTILE}th percentile of |value| along its row"

CAPTION8 = ("Figure 8 of the paper, for the network without biases at the first test image. (a) Spectrum of the data "
            "matrix; (b) spectrum of the network's map J, and its coefficients c = λ φ·x (18), without those below "
            "the axis; (c) first four singular vectors of the data, "
            "right vectors of J, their contraction with the input (23), left vectors of J.")
CAPTION9 = ("Figure 9 of the paper, for the network with biases at the first test image. (a) Right vectors of J, what "
            "each adds to the output, and what the biases of the decoder add; (b) the sums J x and b, the output and "
            "the input.")


def figure8(data: Spectrum, net: Analysis) -> Figure:
    """Spectra of the data matrix and of the network without biases, and their first singular vectors."""
    figure = Figure(figsize=(8.6, 12.2), layout="constrained", facecolor="white")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 3.45])
    figure.suptitle("Rotated squares, autoencoder without biases: data matrix and network operator", fontsize=13)
    left, middle, first, second = top.subplots(1, 4, width_ratios=[1.45, 1.45, 1, 1])
    _spectrum(left, data.values[:SHOWN], "(a) data matrix", None)
    _spectrum(middle, net.spectrum.values, "(b) network operator J", net.spectrum.coefficients)
    low = float((data.values[:SHOWN] / data.values[0]).min())
    for axes in (left, middle):
        axes.set_ylim(min(low, 1e-3) / 2, 12)  # room for the legend
    _image(first, net.x, "input x")
    _image(second, net.output, "output f(x) = J x")
    operator = net.spectrum
    _rows(bottom, [
        ("data matrix:\nsingular vectors", data.right, [f"λ = {v:.4g}" for v in data.values]),
        ("network:\nright vectors $\\phi_k$", operator.right, [f"λ = {v:.3g}" for v in operator.values]),
        ("contraction\n$\\phi_k \\cdot x$ per pixel", operator.contraction,
         [f"φ·x = {v.sum():.3g}" for v in operator.contraction]),
        ("network:\nleft vectors $u_k$", operator.left, [f"c = λ φ·x = {v:.3g}" for v in operator.coefficients]),
    ], "(c) singular vectors, k = 0 to 3 by λ")
    return figure


def figure9(net: Analysis, note: str = "") -> Figure:
    """Contributions of the singular vectors and of the biases, network with biases."""
    figure = Figure(figsize=(8.6, 10.9), layout="constrained", facecolor="white")
    top, bottom = figure.subfigures(2, 1, height_ratios=[3, 1.13])
    figure.suptitle(f"Rotated squares, autoencoder with biases{note}: f(x) = J x + b", fontsize=13)
    spectrum = net.spectrum
    parts = spectrum.coefficients[:, None, None] * spectrum.left
    decoder = {name: part for name, part in net.layers.items() if name.startswith("decoder")}
    encoder = sum(part for name, part in net.layers.items() if name not in decoder)
    _rows(top, [
        ("right vectors $\\phi_k$", spectrum.right, [f"k = {k},  λ = {v:.3g}" for k, v in enumerate(spectrum.values)]),
        ("their part of the\noutput, $c_k\\, u_k$", parts,
         [f"c = {c:.3g}  ({s:.0%} of |J x|²)" for c, s in zip(spectrum.coefficients, spectrum.shares, strict=True)]),
        ("biases' part of the\noutput, $\\beta_l$", list(decoder.values())[-COLUMNS:],
         [f"{name}   |β| = {part.norm():.3g}" for name, part in decoder.items()][-COLUMNS:]),
    ], "(a) top singular vectors by λ, and biases of the decoder", same=(1, 2))
    _rows(bottom, [("sums", [net.linear, net.bias, net.output, net.x],
                    [f"J x,  norm {net.linear.norm():.3g}",
                     f"b,  norm {net.bias.norm():.3g}  (encoder's {encoder.norm():.2g})",
                     "f(x) = J x + b", "input x"])], "(b) the affine map at x")
    return figure


def _spectrum(axes, values: Tensor, title: str, coefficients: Tensor | None) -> None:
    """λ_k / λ_0, and c_k relative to the largest."""
    k = np.arange(len(values))
    axes.semilogy(k, (values / values[0]).numpy(), "o-", color=DARK, ms=3.5, lw=1,
                  label=f"λ / λ₀,  λ₀ = {values[0]:.4g}")
    if coefficients is not None:
        top = coefficients.max()
        axes.semilogy(k, (coefficients / top).clamp(min=1e-9).numpy(), "D", color=ACCENT, ms=4.5, mfc="none",
                      label=f"c / max c,  max c = {top:.3g}")
        axes.set_xlim(-0.5, max(len(k) - 0.5, 7.5))
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("k", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7.5, frameon=False, loc="upper right")


def _image(axes, image: Tensor, title: str) -> None:
    axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[])


def _rows(figure: SubFigure, rows: Sequence[tuple[str, Sequence[Tensor], Sequence[str]]], title: str,
          same: tuple[int, ...] = ()) -> None:
    """Rows of up to four maps, one scale along each; the rows in `same` share theirs."""
    figure.suptitle(f"{title}\n", fontsize=11)
    figure.supxlabel(LEGEND, fontsize=8, color="0.35")
    grid = figure.subplots(len(rows), COLUMNS, squeeze=False)
    common = [m.numpy() for row in same for m in rows[row][1][:COLUMNS]]
    for row, (label, maps, titles) in enumerate(rows):
        shown = [m.numpy() for m in maps[:COLUMNS]]
        half = heatmap.half_range(common if row in same else shown)
        for axes in grid[row, len(shown):]:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "the rank ends here", ha="center", va="center", fontsize=8, color="0.5")
        for axes, values, text in zip(grid[row], shown, titles, strict=False):
            drawn = heatmap.draw(axes, values, half, half)
            axes.set_title(text, fontsize=9)
        grid[row, 0].set_ylabel(label, fontsize=9)
        bar = figure.colorbar(drawn, ax=list(grid[row]), shrink=0.82, aspect=18, pad=0.01,
                              ticks=[-half, 0, half], format=lambda v, _: f"{v:+.2g}" if v else "0")
        bar.ax.tick_params(labelsize=7.5)
        bar.outline.set_linewidth(0.4)
