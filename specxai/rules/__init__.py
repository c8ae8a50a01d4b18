"""Rules: one file per family of ops.  `linear_node(call)` applies the op's rule, or the generic node.

`RULES` maps an ATen overload to its rule.
"""

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
from specxai.rules.base import (
    RULES,
    Call,
    Convolution,
    DiagonalPlusLowRank,
    FullyConnected,
    Gate,
    HeldProduct,
    LinearNode,
    Term,
    rule,
)
from specxai.rules.generic import generic

__all__ = ["RULES", "Call", "Convolution", "DiagonalPlusLowRank", "FullyConnected", "Gate", "HeldProduct", "LinearNode",
           "Term", "linear_node", "rule"]


def linear_node(call: Call) -> LinearNode:
    """The linear node of one call at one x: by the call's rule, or by torch's derivative where there is none.

    The node's terms map blocks (k, *S_in) to blocks (k, *S).  CaptureError where torch cannot differentiate the call.

    >>> import torch, specxai
    >>> local = specxai.linearize(torch.nn.ReLU().eval(), torch.tensor([[1.0, -2.0]]))
    >>> program, values = local.captured.program, local.captured.program.run(local.input)
    >>> step = program.steps[program.output]
    >>> node = linear_node(Call(step, (values[program.input],), {}, values[step.index], "tangent", program.active))
    >>> node.terms[0].apply(torch.tensor([[[3.0, 5.0]]]))
    tensor([[[3., 0.]]])
    """
    known = RULES.get(call.step.target)
    node = known(call) if known is not None else None
    return generic(call) if node is None else node
