"""Figures of an explanation and the HTML report."""

from __future__ import annotations

from specxai.plots.explanation import plot_explanation
from specxai.plots.report import write_report

__all__ = ["plot_explanation", "write_report"]
