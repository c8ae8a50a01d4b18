"""The paper's figures 1-3 for one explanation, with the sums and certificates in the title."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from specxai.plots import heatmap

RED, BLUE, GREY = "#b2182b", "#2166ac", "#6b6b6b"


def plot_explanation(e, path: str | os.PathLike | None = None, *, top: int = 3, image: np.ndarray | None = None,
                     title: str | None = None) -> Figure:
    """Input, leading singular vectors by λ and by reduced contribution, full and reduced spectrum, waterfall.

    e       an Explanation
    path    where to write the figure (any format matplotlib knows), by way of a temporary name
    top     vectors per row
    image   the input as people see it, (h, w) or (h, w, 3); default: the input itself, rescaled

    The maps of the first row are c^k = Σ_c φ_k x (23), of the second the contributions ψ_k λ_k c^k (25); red is
    positive, the half range is the 98th percentile of |c| along the row.
    """
    top = max(1, min(top, len(e))) if len(e) else 1
    figure = Figure(figsize=(3.1 * (top + 2), 8.4), layout="constrained", facecolor="white")
    grid = GridSpec(3, top + 2, figure=figure, height_ratios=[1, 1, 0.95])
    _input(figure.add_subplot(grid[0, 0]), e, image)
    _balance(figure.add_subplot(grid[1, 0]), e)
    maps = e.contract(dim=0).numpy() if e.x.ndim == 3 else (e.right_vectors * e.x).numpy()
    by_value, reduction = e.top(top, by="lambda"), e.reduce()
    contributions = (e.psi * e.S).numpy().reshape(-1, *(1,) * (maps.ndim - 1)) * maps
    _row(figure, grid, 0, [maps[k] for k in by_value],
         [rf"$\lambda_{{{k}}}$ = {e.S[k]:.3g},  $\alpha$ = {e.alpha[k]:+.3g}" for k in by_value],
         "singular vectors by λ:  $\\phi_k \\cdot x$ per point")
    dominant = e.top(top, by="reduced")
    _row(figure, grid, 1, [contributions[k] for k in dominant],
         [rf"$k$ = {k},  $\hat\alpha$ = {v:+.3g}  ({s:.0%})" for k, v, s in
          zip(dominant, reduction.values[:top], reduction.shares[:top], strict=False)],
         "top reduced contributions:  $\\psi_k \\lambda_k\\, \\phi_k \\cdot x$ per point")
    _spectrum(figure.add_subplot(grid[0, top + 1]), e)
    _reduced(figure.add_subplot(grid[1, top + 1]), reduction)
    _waterfall(figure.add_subplot(grid[2, :]), e)
    figure.suptitle((title or f"{e.target_label} = {e.output:.4g} at layer {e.layer}") + "\n" + certificate(e),
                    fontsize=12)
    if path is not None:
        save(figure, path)
    return figure


def certificate(e) -> str:
    """The sums and checks of an explanation in one line."""
    return (f"Σα {float(e.alpha.sum()):+.4g}   bias {e.bias:+.4g}   bypass {e.bypass:+.3g}   "
            f"remainder {e.remainder:+.2g}   exactness {e.exactness:.0e}   completeness {e.completeness:.0e}")


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure under a temporary name, then rename: no reader ever sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.part{path.suffix}")
    figure.savefig(draft, dpi=130)
    draft.replace(path)


def _input(axes, e, image) -> None:
    axes.set_title("input", fontsize=10)
    if image is None:
        x = e.x.numpy()
        if x.ndim not in (2, 3):
            axes.plot(x.ravel(), color=GREY, lw=1)
            return
        image = heatmap.display_image(x)
    axes.imshow(image, cmap="gray", interpolation="nearest")
    axes.set_axis_off()


def _balance(axes, e) -> None:
    """Where the output comes from: all contributions, bias, bypass, remainder."""
    names = ["Σα", "bias", "bypass", "remainder"]
    values = [float(e.alpha.sum()), e.bias, e.bypass, e.remainder]
    axes.barh(names[::-1], values[::-1], color=[RED if v >= 0 else BLUE for v in values[::-1]])
    axes.axvline(0, color="0.6", lw=0.6)
    axes.set_title("terms of the output", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _row(figure, grid, row: int, maps, titles, label: str) -> None:
    half = heatmap.half_range(maps)
    drawn, shown = [], None
    for column, (values, title) in enumerate(zip(maps, titles, strict=True)):
        axes = figure.add_subplot(grid[row, column + 1])
        shown = heatmap.draw(axes, values, half) or shown
        axes.set_title(title, fontsize=10)
        drawn.append(axes)
    if not drawn:
        return
    drawn[len(drawn) // 2].set_xlabel(label, fontsize=9)
    if shown is not None:
        bar = figure.colorbar(shown, ax=drawn, shrink=0.7, aspect=25, pad=0.01)
        bar.set_label(f"red positive, ±{half:.2g} = 98th pct", fontsize=8)
        bar.ax.tick_params(labelsize=7)


def _spectrum(axes, e) -> None:
    k = np.arange(len(e))
    axes.bar(k, e.alpha.numpy(), color=np.where(e.alpha.numpy() >= 0, RED, BLUE), width=1.0)
    axes.set_xlabel("k", fontsize=9)
    axes.set_ylabel("α", fontsize=9)
    twin = axes.twinx()
    twin.plot(k, e.S.numpy(), color="0.25", lw=1.2)
    twin.set_ylabel("λ (line)", fontsize=9)
    twin.set_ylim(bottom=0)
    axes.set_title(f"full spectrum, {len(e)} components", fontsize=10)
    for each in (axes, twin):
        each.tick_params(labelsize=8)


def _reduced(axes, reduction) -> None:
    values = np.asarray(reduction.values)
    axes.bar(np.arange(len(values)), values, color=np.where(values >= 0, RED, BLUE), width=0.9)
    axes.set_title(f"reduced spectrum, {len(values)} terms", fontsize=10)
    axes.set_xlabel("rank", fontsize=9)
    axes.set_ylabel(r"$\hat\alpha$", fontsize=9)
    axes.tick_params(labelsize=8)


def waterfall_steps(e, top: int = 10) -> list[tuple[str, float]]:
    """(label, amount) from zero to the output: largest contributions, the others, bias, bypass, remainder."""
    leading = e.top(top, by="alpha")
    others = float(e.alpha.sum()) - float(e.alpha[leading].sum())
    steps = [(f"α{int(e.indices[k])}", float(e.alpha[k])) for k in leading]
    if len(e) > len(leading):
        steps.append((f"{len(e) - len(leading)} other α", others))
    return [*steps, ("bias", e.bias), ("bypass", e.bypass), ("remainder", e.remainder)]


def _waterfall(axes, e) -> None:
    total = 0.0
    steps = waterfall_steps(e)
    for place, (_, amount) in enumerate(steps):
        axes.bar(place, amount, bottom=total, color=RED if amount >= 0 else BLUE, width=0.75)
        axes.plot([place - 0.38, place + 1.38], [total + amount] * 2, color="0.5", lw=0.7)
        total += amount
    axes.bar(len(steps), e.output, color="0.35", width=0.75)
    axes.axhline(0, color="0.6", lw=0.6)
    axes.set_xticks(range(len(steps) + 1), [name for name, _ in steps] + ["output"], fontsize=9)
    axes.set_title("from zero to the output: red adds, blue takes away", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
