"""Rules: one file per family of ops.  `linear_node(call)` applies the op's rule, or the generic node."""

from __future__ import annotations

from specxai.rules import (  # noqa: F401  register
    activation,
    conv,
    elementwise,
    linear,
    norm,
    pooling,
    product,
    reduce,
    resample,
    shape,
)
from specxai.rules.base import RULES, Call, Convolution, FullyConnected, Gate, LinearNode, Term
from specxai.rules.generic import generic

__all__ = ["Call", "Convolution", "FullyConnected", "Gate", "LinearNode", "Term", "linear_node"]


def linear_node(call: Call) -> LinearNode:
    """The linear node of one call at one x."""
    rule = RULES.get(call.step.target)
    node = rule(call) if rule is not None else None
    return generic(call) if node is None else node
