"""Rules: one file per family of ops.  `linear_node(call)` applies the op's rule, or the generic node."""

from __future__ import annotations

from specxai.rules import activation, conv, elementwise, linear, norm, pooling, reduce, shape  # noqa: F401  register
from specxai.rules.base import RULES, Call, Convolution, FullyConnected, Gate, LinearNode, Term, rule
from specxai.rules.generic import generic

__all__ = ["RULES", "Call", "Convolution", "FullyConnected", "Gate", "LinearNode", "Term", "linear_node", "rule"]


def linear_node(call: Call) -> LinearNode:
    """The linear node of one call at one x."""
    known = RULES.get(call.step.target)
    node = known(call) if known is not None else None
    return generic(call) if node is None else node
