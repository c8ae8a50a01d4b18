"""Spectrum and waterfall to hover over, for the report; needs plotly, and the report does without where it is missing.

The page carries plotly's script compressed (4.8 MB become 2 MB) and unpacks it when a figure is first opened, so that
a report stays small enough to send and opens at once.
"""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
from functools import lru_cache

from specxai.plots.heatmap import BLUE, RED
from specxai.plots.spectrum import waterfall_steps

__all__ = ["available", "figures", "script"]


def available() -> bool:
    """Is plotly installed?"""
    return importlib.util.find_spec("plotly") is not None


@lru_cache(maxsize=1)
def script() -> str:
    """plotly's script, gzip in base64."""
    from plotly.offline import get_plotlyjs

    # mtime=0: equal reports are equal files.
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def figures(e) -> list[dict]:
    """Spectrum and waterfall of an explanation as plotly figures, plain lists and dicts."""
    return [json.loads(figure.to_json()) for figure in (_spectrum(e), _waterfall(e))]


def _spectrum(e):
    import plotly.graph_objects as go

    k, alpha = e.indices.tolist(), e.alpha.tolist()
    details = list(zip(e.psi.tolist(), e.projections.tolist(), strict=True))
    figure = go.Figure([
        go.Bar(x=k, y=alpha, name="contribution α", marker_color=[RED if a >= 0 else BLUE for a in alpha],
               customdata=details, hovertemplate="k = %{x}<br>α = %{y:.4g}<br>ψ = %{customdata[0]:.4g}"
                                                 "<br>φ·x = %{customdata[1]:.4g}<extra></extra>"),
        go.Scatter(x=k, y=e.S.tolist(), name="singular value λ", yaxis="y2", mode="lines",
                   line={"color": "#8a93a3", "width": 1.5},
                   hovertemplate="k = %{x}<br>λ = %{y:.4g}<extra></extra>"),
    ])
    # Both zeros at the same height, as in the picture.
    low, high = min(0.0, *alpha, 0.0), max(0.0, *alpha, 0.0)
    pad, top = 0.06 * ((high - low) or 1.0), 1.06 * max([*e.S.tolist(), 0.0]) or 1.0
    low, high = low - pad, max(high + pad, (pad - low) / 2)
    figure.update_layout(title="Spectrum", yaxis_range=[low, high], xaxis_title="k, by descending λ", yaxis_title="α",
                         yaxis2={"title": "λ", "overlaying": "y", "side": "right", "showgrid": False,
                                 "range": [top * low / high, top], "tickmode": "auto", "zeroline": False},
                         legend={"orientation": "h", "y": 1.12, "x": 1, "xanchor": "right"})
    return _finish(figure)


def _waterfall(e):
    import plotly.graph_objects as go

    steps = waterfall_steps(e, top=12)
    figure = go.Figure(go.Waterfall(
        x=[name for name, _ in steps] + ["output"], y=[amount for _, amount in steps] + [0.0],
        measure=["relative"] * len(steps) + ["total"], increasing_marker_color=RED, decreasing_marker_color=BLUE,
        totals_marker_color="#59606b", connector={"line": {"width": 0.8, "color": "#8a93a3"}},
        hovertemplate="%{x}<br>%{delta:.5g}<br>sum so far %{y:.5g}<extra></extra>"))
    figure.update_layout(title="From zero to the output: red adds, blue takes away", showlegend=False)
    return _finish(figure)


def _finish(figure):
    # Transparent and grey, so that it reads on a light and on a dark page.
    figure.update_layout(template="none", modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8a93a3"},
                         paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", height=380,
                         font={"color": "#7a8494", "family": "system-ui, sans-serif"},
                         margin={"l": 60, "r": 60, "t": 60, "b": 55})
    figure.update_xaxes(gridcolor="rgba(128,128,128,.18)", zerolinecolor="rgba(128,128,128,.5)")
    figure.update_yaxes(zerolinecolor="rgba(128,128,128,.5)")
    return figure
