"""Heat maps of singular vectors: what each point of the input has to do with a component."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes

from specxai.plots import heatmap
from specxai.plots.axes import axis_or_new, colour_bar, displayed, sign_legend
from specxai.plots.heatmap import INK
from specxai.plots.spectrum import signed, subscript
from specxai.spectral.contraction import combine, contract, normalise_dims

__all__ = ["component_map", "draw_heatmap"]

MOST_CHANNELS = 4  # of an input of two axes; more rows are a picture's


def component_map(source, k: int | None = 0, *, of: str = "projection", dim: int | Sequence[int] | None = None
                  ) -> np.ndarray:
    """The map of component `k` over the input's points, as an array.

    source  an Explanation or a Decomposition
    k       position of the component; None for the sum of all contributions
    of      "projection" c^k = Σ_dim φ_k ∘ x (23), which adds up to φ_k·x; "contribution" ψ_k λ_k c^k (25), which adds
            up to α_k (an Explanation's); "average" the mean of φ_k over the axes `dim`, as in the paper's figure 11
    dim     axes of the input to contract; default as `default_dim`

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).eval()
    >>> e = specxai.explain(net, torch.ones(1, 4), layer="1", rank=2)
    >>> bool(abs(component_map(e, 0).sum() - float(e.projections[0])) < 1e-5)
    True
    """
    if of not in ("projection", "contribution", "average"):
        raise ValueError(f"of={of!r}: choose 'projection', 'contribution' or 'average'")
    dim = default_dim(source.x.shape) if dim is None else dim
    decomposition = not hasattr(source, "psi")
    if decomposition and of == "contribution":
        raise ValueError("a Decomposition knows no output, so nothing contributes to it: explain a target of it")
    if k is None:
        if of != "contribution":
            raise ValueError(f"k=None sums contributions, and of={of!r} are none: pass of='contribution'")
        row = combine(source.psi * source.S, source.right_vectors)
        return contract(row[None], source.x.double(), dim)[0].numpy()
    if not -len(source) <= k < len(source):
        raise ValueError(f"k={k} is out of range: there are {len(source)} components")
    vector = source.V[:, k].reshape(source.x.shape) if decomposition else source.right_vectors[k]
    if of == "average":
        dims = normalise_dims(dim, source.x.shape)
        return (vector.double().mean(dims) if dims else vector.double()).numpy()
    values = contract(vector[None], source.x, dim)[0].double().numpy()
    return float(source.psi[k] * source.S[k]) * values if of == "contribution" else values


def draw_heatmap(source, axis: Axes | None = None, *, k: int | None = 0, of: str | None = None,
                 dim: int | Sequence[int] | None = None, half: float | None = None, smooth: float = 0.0,
                 threshold: float = 0.0, title: str | None = None, legend: bool = True) -> Axes:
    """Draw the map of a component, or any signed map, in red and blue about a white zero; returns the axis.

    source     an Explanation, a Decomposition, or an array or tensor (h, w) or (n,)
    axis       where to draw; a new figure's by default
    k, of, dim as of `component_map`; of an Explanation the default is "contribution", of a Decomposition "projection";
               for an array `of` only chooses the legend
    half       the colours end at ±half; default: the 98th percentile of |value|
    smooth, threshold  show the map smoothed by a Gaussian of so many pixels, and without what is below a share of the
               largest value; the title then says so
    title      first line; default: the component and its numbers
    legend     say below the map what red means

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8), torch.nn.ReLU()).eval()
    >>> e = specxai.explain(net, torch.rand(1, 3, 4, 4), layer="2", rank=2)
    >>> draw_heatmap(e, k=1, smooth=0.5).get_title().splitlines()[1]
    'smoothed, σ = 0.5 pixels'
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        of, values = of or "values", np.asarray(source, dtype=float)
        heading = ""
    else:
        of = of or ("contribution" if hasattr(source, "psi") else "projection")
        values = component_map(source, k, of=of, dim=dim)
        heading = _heading(source, k, of)
    if values.ndim not in (1, 2):
        raise ValueError(f"a map of shape {values.shape} cannot be drawn: pass dim= with more axes of the input, so "
                         "that one or two are left" if values.ndim else "a single number is no map")
    values, note = displayed(values, smooth, threshold)
    own = half is None
    half = heatmap.half_range([values]) if own else half
    size = (4.2, 4.2 * min(2.0, max(0.5, values.shape[0] / values.shape[1]))) if values.ndim == 2 else (5.0, 2.6)
    axis = axis_or_new(axis, size)
    image = heatmap.draw(axis, values, half, float(np.abs(values).max(initial=0)) or 1.0)
    axis.set_title("\n".join(line for line in (heading if title is None else title, note) if line), fontsize=9,
                   color=INK, parse_math=False)
    if image is not None:
        colour_bar(axis, image, heatmap.scale_text(half, own), extend="both", ticks=[-half, 0, half],
                   format=lambda value, _: signed(float(value), 2))
    if legend:
        sign_legend(axis, of, inside=image is None)
    return axis


def default_dim(shape: Sequence[int]) -> int | tuple[()]:
    """Channels are contracted; a line, and two axes with too many rows for channels, are drawn as they are.

    >>> default_dim((3, 32, 32)), default_dim((64, 64)), default_dim((10,))
    (0, (), ())
    """
    return 0 if len(shape) > 2 or (len(shape) == 2 and shape[0] <= MOST_CHANNELS) else ()


def _heading(source, k: int | None, of: str) -> str:
    if k is None:
        return f"all {len(source)} components, Σα = {signed(float(source.alpha.sum()))}"
    place = subscript(int(source.indices[k]))
    if of == "contribution":
        return f"α{place} = {signed(float(source.alpha[k]))}"
    return f"λ{place} = {source.S[k]:.3g}" + (f",  φ·x = {source.projections[k]:.3g}" if of == "projection" else
                                              ",  mean of φ over the features")
