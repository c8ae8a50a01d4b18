"""Figures 4 to 7, 10 and 11 of the paper: contributions drawn on shapes, and what is counted of them."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor

from specxai.experiments.surfaces.mesh import ShapeSet
from specxai.experiments.surfaces.render import camera, fit, still

PALETTE, PERCENTILE = "RdBu_r", 98
INK, SOFT, RED, BLUE = "#222831", "#6b7280", "#b2182b", "#2166ac"
PAPER = (0.93, 0.94, 0.95)  # of a shape without contributions
WIDTH, HEIGHT = 440, 280  # pixels of a still, before supersampling


def placed(figure: Figure) -> Figure:
    """The figure with its layout found once: every format that it is saved in would find it again."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def half_range(fields: Sequence[Tensor]) -> float:
    """Of the colours of a row: a few extreme vertices must not flatten the others."""
    values = np.abs(np.concatenate([f.double().numpy().ravel() for f in fields]))
    return float(np.percentile(values, PERCENTILE)) or float(values.max()) or 1.0


def close_up(shapes: ShapeSet, vertices: Tensor) -> Tensor:
    """(3, n) the vertices (3, V) that a still of contributions has to hold."""
    return vertices if shapes.focus is None else vertices[:, shapes.focus]


def legend(shapes: ShapeSet) -> str:
    """What the colours mean."""
    return (f"red raises the {shapes.what}, blue lowers it, white: no contribution.  A picture's colours end at ± the "
            f"number above it, the {PERCENTILE}th percentile of its |contributions| per vertex.")


def draw_shape(axes: Axes, shapes: ShapeSet, vertices: Tensor, field: Tensor | None = None, half: float = 1.0,
               frame=None, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Axes:
    """One still: vertices (3, V) in metres, coloured by a field (V,) at ± half."""
    if field is None:
        colours = np.broadcast_to(PAPER, (shapes.vertices, 3))
        shades = shapes.shades.numpy()
    else:
        scaled = np.clip(field.double().numpy() / half, -1, 1)
        colours = matplotlib.colormaps[PALETTE]((scaled + 1) / 2)[:, :3]
        shades = 1 - (1 - shapes.shades.numpy()) * 0.45  # windows and tyres are still to be seen
    picture = still(vertices.double().numpy(), shapes.faces.numpy(), colours * shades[:, None], shapes.eye, *size,
                    frame=frame)
    axes.imshow(picture, interpolation="antialiased")
    axes.set_axis_off()
    return axes


def size_of(shapes: ShapeSet, vertices: Tensor) -> tuple[int, int]:
    """Pixels of a still that suit a shape: as much for an upright one as for a long one."""
    seen = camera(shapes.eye) @ vertices.double().numpy()
    wide, tall = np.ptp(seen[0]), np.ptp(seen[1])
    side = (WIDTH * HEIGHT * wide / tall) ** 0.5
    return int(side), int(side * tall / wide)


def contributions(shapes: ShapeSet, rows: Sequence[dict], title: str, orders: Sequence[str] = (),
                  note: str | None = None) -> Figure:
    """Rows of stills: the shape, then fields, each at a scale of its own that is printed above it.

    rows    {"name", "vertices" (3, V) in metres, "fields" [(V,)], "titles" [str]}
    orders  heads of the columns of fields
    note    below the figure, `legend` by default
    """
    columns = 1 + max(len(row["fields"]) for row in rows)
    size = size_of(shapes, close_up(shapes, rows[0]["vertices"]))
    wide = 2.9 if size[0] > size[1] else 2.0
    figure = Figure(figsize=(wide * columns + 0.2, (wide * size[1] / size[0] + 0.62) * len(rows) + 0.95),
                    layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=12.5, fontweight="bold", color=INK, parse_math=False)
    figure.supxlabel(legend(shapes) if note is None else note, fontsize=8.5, color=SOFT, wrap=True)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for place, (row, axes) in enumerate(zip(rows, grid, strict=True)):
        frame = fit(close_up(shapes, row["vertices"]).double().numpy(), shapes.eye, size[0] / size[1])
        draw_shape(axes[0], shapes, row["vertices"], frame=frame, size=size)
        axes[0].set_title(row["name"], fontsize=9, color=INK)
        for at, (cell, field, name) in enumerate(zip(axes[1:], row["fields"], row["titles"], strict=False)):
            half = half_range([field])
            draw_shape(cell, shapes, row["vertices"], field, half, frame, size)
            head = f"{orders[at]}\n" if place == 0 and at < len(orders) else ""
            cell.set_title(f"{head}{name}\n±{half:.2g}", fontsize=9, color=INK)
    return placed(figure)


def gallery(shapes: ShapeSet, vertices: Tensor, target: Tensor, predicted: Tensor, true: Tensor, guessed: Tensor,
            score: str) -> Figure:
    """Test shapes (6, 3, V) with the formula's and the net's number, and these for all test shapes."""
    figure = Figure(figsize=(11.5, 5.2 if shapes.name == "car" else 6.4), layout="constrained", facecolor="white")
    left, right = figure.subfigures(1, 2, width_ratios=[2.1, 1])
    size = size_of(shapes, vertices[0])
    frames = [fit(v.double().numpy(), shapes.eye, size[0] / size[1]) for v in vertices]
    widest = max(half for _, half in frames)
    for axes, v, (centre, _), y, p in zip(left.subplots(2, 3).flat, vertices, frames, true, guessed, strict=True):
        draw_shape(axes, shapes, v, frame=(centre, widest), size=size)
        axes.set_title(f"formula {y:.3g}, net {p:.3g} {shapes.unit}", fontsize=9, color=INK)
    axes = right.subplots()
    ends = [float(min(target.min(), predicted.min())), float(max(target.max(), predicted.max()))]
    axes.plot(ends, ends, color="0.6", lw=0.8)
    axes.scatter(target.numpy(), predicted.numpy(), s=9, color=BLUE, alpha=0.55, linewidths=0)
    axes.set(xlabel=f"formula's {shapes.symbol} {shapes.unit}", ylabel="net's", aspect="equal")
    axes.set_title(f"test shapes\n{score}", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"The set of {shapes.name}s: {shapes.vertices} vertices in correspondence; {shapes.what}",
                    fontsize=12.5, fontweight="bold", color=INK)
    return placed(figure)


def similarities(plain: Sequence[Tensor], spaces: Sequence[Tensor], name: str) -> Figure:
    """Figure 5: matrices (n, n) of the first three vectors by |α|; inner products above, cosines of spaces below."""
    figure = Figure(figsize=(11, 7.0), layout="constrained", facecolor="white")
    grid = figure.subplots(2, len(plain))
    for column, (inner, space) in enumerate(zip(plain, spaces, strict=True)):
        for axes, matrix, palette, low in ((grid[0, column], inner, PALETTE, -1), (grid[1, column], space, "magma", 0)):
            drawn = axes.imshow(matrix.numpy(), cmap=palette, vmin=low, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            count = len(matrix)
            mean = float((matrix.sum() - matrix.trace()) / (count * (count - 1)))
            axes.set_title(f"vector {column + 1}, mean {mean:.2f}", fontsize=9.5, color=INK)
            if column == len(plain) - 1:
                figure.colorbar(drawn, ax=list(grid[0 if low else 1]), shrink=0.85, aspect=22, pad=0.01)
    grid[0, 0].set_ylabel("inner products φ·φ'\n(signs fixed by φ·x ≥ 0)", fontsize=9, color=INK)
    grid[1, 0].set_ylabel("cosine of the angle\nto the space of close λ", fontsize=9, color=INK)
    figure.suptitle(f"Similarity of the vectors of largest |α| at the first layer, {len(plain[0])} test {name}s",
                    fontsize=12.5, fontweight="bold", color=INK)
    figure.supxlabel(f"a row and a column for each {name}, in the order of the first vector's likeness",
                     fontsize=8.5, color=SOFT)
    return placed(figure)


def evolution(shapes: ShapeSet, vertices: Tensor, views: dict, title: str) -> Figure:
    """Figures 6 and 7: the top vector and the spectrum at each layer.

    views  {layer: {"field" (V,), "alpha" (r,), "values" (r,), "name"}}
    """
    size = size_of(shapes, close_up(shapes, vertices))
    tall = 3.55 * size[1] / size[0]
    figure = Figure(figsize=(11.4, min(tall, 5.2) + 3.5), layout="constrained", facecolor="white")
    upper, lower = figure.subfigures(2, 1, height_ratios=[min(tall, 5.2), 2.6])
    frame = fit(close_up(shapes, vertices).double().numpy(), shapes.eye, size[0] / size[1])
    for axes, spectrum, one in zip(upper.subplots(1, len(views)), lower.subplots(1, len(views)), views.values(),
                                   strict=True):
        half = half_range([one["field"]])
        draw_shape(axes, shapes, vertices, one["field"], half, frame, size)
        axes.set_title(f"{one['name']}\n±{half:.2g}", fontsize=9.5, color=INK)
        draw_spectrum(spectrum, one["alpha"], one["values"])
    figure.suptitle(title, fontsize=12.5, fontweight="bold", color=INK)
    figure.supxlabel(legend(shapes), fontsize=8.5, color=SOFT)
    return placed(figure)


def draw_spectrum(axes: Axes, alpha: Tensor, values: Tensor, most: int = 24) -> Axes:
    """α as bars by place in the spectrum, λ / λ₀ as a line."""
    shown = alpha[:most].numpy()
    k = np.arange(len(shown))
    axes.bar(k, shown, color=np.where(shown >= 0, RED, BLUE), width=0.85)
    axes.axhline(0, color="0.5", lw=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("k" + (f"  ({len(alpha) - most} more not drawn)" if len(alpha) > most else ""), fontsize=8.5)
    axes.set_ylabel("α", fontsize=9)
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
    twin = axes.twinx()
    twin.semilogy(k, (values[:most] / values[0]).numpy(), ".-", color="0.45", ms=4, lw=0.8)
    twin.set_ylabel(r"$\lambda_k / \lambda_0$ (grey)", fontsize=8, color=SOFT)
    twin.yaxis.set_minor_locator(NullLocator())
    twin.tick_params(labelsize=7, colors=SOFT)
    twin.spines[["top", "left"]].set_visible(False)
    return axes


def bias_clouds(shapes: ShapeSet, parts: Sequence[tuple[str, Tensor]], title: str) -> Figure:
    """Figure 10: contributions (3, V) to a reconstruction, each as a cloud of points, one scale for all."""
    columns = 4
    lines = -(-len(parts) // columns)
    view = camera(shapes.eye)
    seen = [view @ points.double().numpy() for _, points in parts]
    low, high = (np.array([of(one[:2], 1) for one in seen]) for of in (np.min, np.max))
    low, high = low.min(0), high.max(0)
    margin = 0.05 * (high - low).max()
    wide, tall = high - low + 2 * margin
    figure = Figure(figsize=(11.6, (2.75 * min(tall / wide, 1.6) + 0.3) * lines + 0.9), layout="constrained",
                    facecolor="white")
    grid = figure.subplots(lines, columns, squeeze=False)
    for empty in grid.flat[len(parts):]:
        empty.set_axis_off()
    for axes, (name, _), (x, y, depth) in zip(grid.flat, parts, seen, strict=False):
        order = np.argsort(depth)
        axes.scatter(x[order], y[order], c=depth[order], s=2.2, cmap="viridis", linewidths=0)
        axes.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin), aspect="equal",
                 xticks=[], yticks=[])
        axes.spines[:].set_color("0.85")
        axes.set_title(name, fontsize=8.5, color=INK)
    figure.suptitle(title, fontsize=12.5, fontweight="bold", color=INK)
    figure.supxlabel("each vertex where the term puts it, seen from the same side at one scale; yellow is nearer",
                     fontsize=8.5, color=SOFT)
    return placed(figure)
