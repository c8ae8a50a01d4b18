"""Rules: one file per family of ops.  `linear_node(site)` applies the op's rule, or the generic node."""

from __future__ import annotations

from specxai.rules import activation, conv, elementwise, linear, norm, pooling, reduce, shape  # noqa: F401  register
from specxai.rules.base import RULES, Convolution, DenseStage, Gate, LinearNode, Site, Term
from specxai.rules.generic import generic

__all__ = ["Convolution", "DenseStage", "Gate", "LinearNode", "Site", "Term", "linear_node"]


def linear_node(site: Site) -> LinearNode:
    """The linear node of one call at one x."""
    rule = RULES.get(site.step.target)
    node = rule(site) if rule is not None else None
    return generic(site) if node is None else node
