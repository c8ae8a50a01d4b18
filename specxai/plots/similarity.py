"""Do different inputs share their singular vectors?  The paper's figure 5."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes

from specxai._text import printable
from specxai.plots.axes import axis_or_new, colour_bar
from specxai.plots.heatmap import INK, SOFT

__all__ = ["draw_similarity", "similarity"]

MOST_NUMBERS = 12  # rows up to which each cell's number is written into it


def similarity(items: Sequence, k: int = 0) -> np.ndarray:
    """|φ_k · φ_k'| between the k-th vectors of every two of n Explanations or Decompositions, (n, n) in [0, 1].

    The sign of a singular vector is a convention, so the absolute value is compared.  Where λ_k lies near its
    neighbours the vector itself is arbitrary within their space: compare subspaces there.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).eval()
    >>> items = [specxai.decompose(net, torch.ones(1, 4), layer="1", rank=2) for _ in range(2)]
    >>> similarity(items).round(3).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    rows = [(one.right_vectors if hasattr(one, "right_vectors") else one.V.T) for one in items]
    if not rows:
        raise ValueError("nothing to compare: give at least one Explanation or Decomposition")
    if short := [i for i, row in enumerate(rows) if not -len(row) <= k < len(row)]:
        raise ValueError(f"k={k} is out of range: item {short[0]} has {len(rows[short[0]])} components")
    if len(sizes := {row[0].numel() for row in rows}) > 1:
        raise ValueError(f"the inputs have different sizes, {sorted(sizes)} numbers: their vectors cannot be compared")
    vectors = torch.stack([row[k].reshape(-1).double() for row in rows])
    return (vectors @ vectors.T).abs().clamp(max=1).numpy()


def draw_similarity(source, axis: Axes | None = None, *, k: int = 0, labels: Sequence[str] | None = None,
                    title: str | None = None, meaning: str | None = None) -> Axes:
    """Draw a matrix of similarities, white for 0 to red for 1; returns the axis.

    source   n Explanations or Decompositions, compared by `similarity` at component `k`; or a matrix (n, n) in [0, 1]
    labels   n names for rows and columns
    meaning  of the numbers, for the colour bar

    >>> draw_similarity(np.eye(3), labels=["a", "b", "c"]).get_title()
    'similarity'
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        matrix, meaning = np.asarray(source, dtype=float), meaning or "similarity"
    else:
        matrix, meaning = similarity(source, k), meaning or f"|φ·φ'| of the vectors of k = {k}"
        title = f"vectors k = {k} of {len(matrix)} inputs" if title is None else title
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a similarity matrix is square, got shape {matrix.shape}")
    if not (matrix.min(initial=0) >= 0 and matrix.max(initial=0) <= 1 + 1e-6):
        raise ValueError(f"similarities lie in [0, 1], got {matrix.min():.4g} to {matrix.max():.4g}: take absolute "
                         "values, or cosines of angles")
    n = len(matrix)
    if labels is not None and len(labels) != n:
        raise ValueError(f"{len(labels)} labels for {n} rows: give one each")
    axis = axis_or_new(axis, (4.8, 4.2))
    image = axis.imshow(matrix, cmap="Reds", vmin=0, vmax=1, interpolation="nearest")
    if n <= MOST_NUMBERS:
        for i, j in np.ndindex(n, n):
            axis.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=6.5,
                      color="white" if matrix[i, j] > 0.6 else INK)
    if labels is not None:
        names = [printable(name) for name in labels]
        axis.set_xticks(range(n), names, rotation=90, fontsize=7, parse_math=False)
        axis.set_yticks(range(n), names, fontsize=7, parse_math=False)
    else:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(f"{n} inputs", fontsize=8, color=SOFT)
    axis.tick_params(length=0)
    axis.spines[:].set_color("0.75")
    colour_bar(axis, image, f"{meaning}\nred: 1, the same; white: 0, orthogonal")
    axis.set_title("similarity" if title is None else title, fontsize=10, color=INK, parse_math=False)
    return axis
