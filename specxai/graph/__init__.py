"""The graph of linear nodes between the values at one input, and its narrowest cut."""

from __future__ import annotations

from specxai.graph.graph import Graph

__all__ = ["Graph"]
