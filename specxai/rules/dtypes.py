"""One dtype for all nodes of a network that computes in several: autocast regions, a part in float64.

The values at x are what the network made of it, rounded in each step's own dtype; so are its gates.  The linear map
between them is one set of numbers, in the widest dtype, which holds every narrower number exactly; in float32 at least.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from specxai.capture.program import Program, is_getitem, substitute


def widest(program: Program, values: list) -> torch.dtype:
    """The narrowest floating dtype, of 32 bits or more, that holds every value that depends on x and every array such
    values meet: products with weights of 16 bits are summed up in float32.

    Constants of no axes, as in torch's own promotion, do not count.  It is the same at every input.
    """
    if "widest" not in program.found:
        program.found["widest"] = _widest(program, values)
    return program.found["widest"]


def _widest(program: Program, values: list) -> torch.dtype:
    dtype = torch.promote_types(values[program.input].dtype, torch.float32)
    for step in program.steps:
        value = values[step.index]
        if step.index not in program.active or step.kind != "call" or not isinstance(value, Tensor):
            continue
        # Of a call with several results, those that are used: statistics of a norm are wider than the norm.
        given = () if is_getitem(step) else tree_leaves(substitute((step.args, dict(step.kwargs)), values))
        for tensor in (value, *(leaf for leaf in given if isinstance(leaf, Tensor) and leaf.ndim)):
            if tensor.is_floating_point():
                dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def converted(tree: Any, dtype: torch.dtype) -> Any:
    """The arguments of a call with every floating-point tensor, and every floating dtype asked for, in `dtype`."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(dtype) if leaf.is_floating_point() else leaf
        return dtype if isinstance(leaf, torch.dtype) and leaf.is_floating_point else leaf

    return tree_map(convert, tree)
