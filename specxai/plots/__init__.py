"""Figures of explanations and decompositions, and the HTML report."""

from __future__ import annotations

from specxai.plots.decomposition import plot_decomposition
from specxai.plots.explanation import plot_explanation
from specxai.plots.report import write_report

__all__ = ["plot_decomposition", "plot_explanation", "write_report"]
