"""Pictures of explanations and decompositions: whole figures (`plot_…`), single drawings (`draw_…`), the HTML report.

Every `draw_…` takes what it draws and, if given, the matplotlib axis to draw on, and returns the axis; without one it
makes a figure, `axis.figure`.  Colours are signed, never absolute values: red positive, blue negative, and a legend
says what that means.  pyplot is not touched, so all is safe in threads and servers.

>>> import torch, specxai
>>> from matplotlib.figure import Figure
>>> from specxai.plots import draw_biases, draw_waterfall
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
>>> e = specxai.explain(net, torch.ones(1, 4), layer="1", target=0)
>>> left, right = Figure().subplots(1, 2)
>>> draw_biases(e, left).get_title(), draw_waterfall(e, right).get_title()
('bias by layer', 'from zero to the output')
"""

from __future__ import annotations

from specxai.plots.biases import draw_biases
from specxai.plots.decomposition import plot_decomposition
from specxai.plots.evolution import draw_evolution
from specxai.plots.explanation import plot_explanation
from specxai.plots.maps import component_map, draw_heatmap
from specxai.plots.mesh import draw_contributions_3d
from specxai.plots.report import write_report
from specxai.plots.similarity import draw_similarity, similarity
from specxai.plots.spectrum import draw_reduced, draw_spectrum, draw_waterfall
from specxai.plots.tokens import draw_tokens, tokens_html, write_tokens

__all__ = [
    "component_map",
    "draw_biases",
    "draw_contributions_3d",
    "draw_evolution",
    "draw_heatmap",
    "draw_reduced",
    "draw_similarity",
    "draw_spectrum",
    "draw_tokens",
    "draw_waterfall",
    "plot_decomposition",
    "plot_explanation",
    "similarity",
    "tokens_html",
    "write_report",
    "write_tokens",
]
