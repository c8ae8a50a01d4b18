"""Products with large weights of 16 bits, which are widened part by part while a product runs, and never kept so.

y = W z with W in bfloat16 or float16 and blocks in float32: every number of W is one of float32, so that the products
are those of the widened weights to the last digit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.rules.base import Call, LinearNode, one

LARGE = 1 << 16  # numbers; smaller weights are widened once
PART = 1 << 22  # numbers that are widened at a time
aten = torch.ops.aten
# overload -> (position of z, position of W, position of the bias, is W (in, out)?)
_PRODUCTS = {aten.linear.default: (0, 1, 2, False), aten.addmm.default: (1, 2, 0, True),
             aten.mm.default: (0, 1, None, True), aten.matmul.default: (0, 1, None, True)}


def narrow_product(call: Call, dtype: torch.dtype) -> LinearNode | None:
    """The node of a product with such a weight, for blocks in `dtype`; None for every other call.

    call   with its arguments as they are, not converted to one dtype
    """
    if call.step.target not in _PRODUCTS:
        return None
    position, at, added, across = _PRODUCTS[call.step.target]
    weight, bias = call.args[at], None if added is None or added >= len(call.args) else call.args[added]
    is_large = isinstance(weight, Tensor) and weight.layout is torch.strided and weight.ndim == 2 and (
        weight.is_floating_point() and weight.itemsize < dtype.itemsize and weight.numel() >= LARGE)
    scaled = any(call.kwargs.get(name, 1) != 1 for name in ("alpha", "beta"))
    if not is_large or scaled or not call.only(position):
        return None
    weight = weight.detach().mT if across else weight.detach()  # (out, in)
    own, shape = call.args[position].shape, call.value.shape
    step = max(1, PART // weight.shape[1])
    parts = [slice(start, start + step) for start in range(0, weight.shape[0], step)]

    def apply(block: Tensor) -> Tensor:
        rows = block.reshape(-1, weight.shape[1])
        out = rows.new_empty(len(rows), weight.shape[0])
        for part in parts:
            torch.mm(rows, weight[part].to(dtype).mT, out=out[:, part])
        return out.reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        rows = block.reshape(-1, weight.shape[0])
        out = rows.new_zeros(len(rows), weight.shape[1])
        for part in parts:
            out.addmm_(rows[:, part], weight[part].to(dtype))
        return out.reshape(block.shape[0], *own)

    offset = None if bias is None else bias.detach().to(dtype).expand(shape)
    return one(call, apply, adjoint, position=position, offset=offset, flops=2 * own.numel() * weight.shape[0],
               resets=True, narrow=weight)
