"""Contributions on a shape in space: the paper's figures 4, 7 and 10 as stills."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from specxai.plots import heatmap
from specxai.plots.axes import axis_or_new, displayed, sign_legend
from specxai.plots.heatmap import INK, PALETTE
from specxai.plots.maps import component_map

__all__ = ["draw_contributions_3d"]


def draw_contributions_3d(source, vertices, faces=None, axis: Axes | None = None, *, k: int | None = 0,
                          of: str | None = None, dim: int | Sequence[int] | None = None, half: float | None = None,
                          threshold: float = 0.0, view: tuple[float, float] = (22, -60), title: str | None = None,
                          legend: bool = True) -> Axes:
    """Draw a number per vertex on a shape, red and blue about a light grey zero; returns the 3-d axis.

    source     an Explanation or a Decomposition of an input (n, 3) or (3, n), whose map of component `k` is drawn as
               of `component_map` (k, of); or an array or tensor (n,)
    vertices   (n, 3), z up;  faces (m, 3) corners of triangles as rows of vertices, None for a cloud of points
    dim        the input's axis of coordinates; default: the one of size 3, the last if both are
    axis       one made with projection="3d"; a new figure's by default
    half       the colours end at ±half; default: the 98th percentile of |value|, printed in the title
    threshold  values below this share of the largest are drawn as zero, and the title says so
    view       elevation and azimuth in degrees

    A face has the mean of its corners' values.  Raises ValueError where the shapes do not fit together.

    >>> corners, sides = np.eye(4, 3), [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]
    >>> draw_contributions_3d(np.array([1.0, -1.0, 0.0, 0.0]), corners, sides, title="a tetrahedron").get_title()
    'a tetrahedron\\n±1, the 98th percentile of |value|'
    """
    vertices = np.asarray(vertices, dtype=float)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"vertices must have shape (n, 3), got {vertices.shape}")
    if hasattr(source, "x"):
        of = of or ("contribution" if hasattr(source, "psi") else "projection")
        values = component_map(source, k, of=of, dim=_coordinates(source.x.shape) if dim is None else dim)
    else:
        of, values = of or "values", np.asarray(source, dtype=float)
    if values.shape != (len(vertices),):
        raise ValueError(f"{values.shape} values for {len(vertices)} vertices: give one number each")
    values, note = displayed(values, 0.0, threshold)
    own = half is None
    half = heatmap.half_range([values]) if own else half
    axis = axis_or_new(axis, (5.2, 4.2), projection="3d")
    if getattr(axis, "name", "") != "3d":
        raise ValueError("the axis is flat: make it with projection='3d'")
    if faces is None:
        axis.scatter(*vertices.T, c=_colours(values, half), s=6, depthshade=False, linewidths=0, clip_on=False)
    else:
        _surface(axis, vertices, np.asarray(faces), values, half)
    _frame(axis, vertices, view)
    scale = heatmap.scale_text(half, own)
    axis.set_title("\n".join(line for line in (title or "", note, scale) if line), fontsize=9, color=INK,
                   parse_math=False)
    if legend:
        sign_legend(axis, of)
    return axis


def _surface(axis: Axes, vertices: np.ndarray, faces: np.ndarray, values: np.ndarray, half: float) -> None:
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    if faces.ndim != 2 or faces.shape[1] != 3 or not np.issubdtype(faces.dtype, np.integer):
        raise ValueError(f"faces must be whole numbers of shape (m, 3), got {faces.dtype} {faces.shape}")
    if faces.size and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise ValueError(f"faces name vertices {faces.min()} to {faces.max()}, and there are {len(vertices)}")
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    light = np.array([-0.3, -0.5, 0.81])
    # Either side of a face may be the outer one; the shade only hints at the form, so that the colour can be read.
    shade = 0.72 + 0.28 * np.abs(normal @ light)
    colours = _colours(values[faces].mean(1), half)
    colours[:, :3] *= shade[:, None]
    axis.add_collection3d(Poly3DCollection(corners, facecolors=colours, edgecolors=colours, linewidths=0.2,
                                           rasterized=True, clip_on=False))


def _colours(values: np.ndarray, half: float) -> np.ndarray:
    """(n, 4) colours; zero is a light grey, since white would run into the page."""
    colours = colormaps[PALETTE]((np.clip(values / half, -1, 1) + 1) / 2)
    colours[:, :3] *= 0.93
    return colours


def _frame(axis: Axes, vertices: np.ndarray, view: tuple[float, float]) -> None:
    low, high = vertices.min(0), vertices.max(0)
    size = np.maximum(high - low, 1e-3 * (high - low).max() or 1.0)
    axis.set(xlim=(low[0], low[0] + size[0]), ylim=(low[1], low[1] + size[1]), zlim=(low[2], low[2] + size[2]))
    axis.set_box_aspect(size, zoom=1.1)
    axis.set_proj_type("ortho")
    axis.view_init(*view)
    axis.set_axis_off()


def _coordinates(shape: Sequence[int]) -> int:
    found = [axis for axis, size in enumerate(shape) if size == 3]
    if len(shape) != 2 or not found:
        raise ValueError(f"an input of shape {tuple(shape)} has no axis of coordinates: pass dim=")
    return found[-1]
