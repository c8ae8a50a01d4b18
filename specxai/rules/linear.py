"""Fully connected maps and products with a constant matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.rules.base import Call, FullyConnected, LinearNode, expand_to, one, rule, sum_to


@rule("linear.default")
def linear(call: Call) -> LinearNode | None:
    """y = W z + b over the last axis, with constant weights."""
    if not call.only(0):
        return None
    weight = call.args[1]
    return _fully_connected(call, 0, weight, call.arg(2, "bias"))


@rule("addmm.default")
def addmm(call: Call) -> LinearNode | None:
    """y = z W + b with a constant matrix, and without factors of their own."""
    bias, _, matrix = call.args[:3]
    if not call.only(1) or call.kwargs.get("beta", 1) != 1 or call.kwargs.get("alpha", 1) != 1:
        return None
    return _fully_connected(call, 1, matrix.mT, bias)


@rule("mm.default", "matmul.default", "bmm.default", "mv.default", "_sparse_mm.default")
def matmul(call: Call) -> LinearNode | None:
    """A product with a constant matrix, dense or sparse, on either side."""
    left, right = call.args[:2]
    if any(part.layout is not torch.strided for part in (left, right)):
        return _sparse(call)
    if call.only(0) and right.ndim == 2:
        return _fully_connected(call, 0, right.mT, None)
    if not (call.only(0) or call.only(1)) or min(left.ndim, right.ndim) < 2:
        return None  # both sides depend on x: attention, bilinear layers
    position = 0 if call.only(0) else 1
    own, constant = (left.shape, right) if position == 0 else (right.shape, left)
    shape = call.value.shape

    def apply(block: Tensor) -> Tensor:
        lifted = _lift(block, len(shape))
        out = torch.matmul(lifted, constant) if position == 0 else torch.matmul(constant, lifted)
        return out.reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        out = torch.matmul(block, constant.mT) if position == 0 else torch.matmul(constant.mT, block)
        return sum_to(out, own)

    flops = 2 * shape.numel() * own[-1 if position == 0 else -2]
    return one(call, apply, adjoint, position=position, flops=flops, resets=True)


def _sparse(call: Call) -> LinearNode | None:
    """A product with a constant sparse matrix of any layout, which stays sparse."""
    position = 0 if call.only(0) else 1
    own, constant = call.args[position], call.args[1 - position]
    if not call.only(position) or constant.ndim != 2 or own.layout is not torch.strided:
        return None
    matrix = (constant if position == 1 else constant.to_sparse().mT).detach().to_sparse().coalesce()
    back, shape, own, axis = matrix.mT.coalesce(), call.value.shape, own.shape, -1 if position == 0 else -2
    axis = -1 if len(own) == 1 else axis

    def along(matrix: Tensor, block: Tensor) -> Tensor:
        """The matrix on one axis of the block, all others side by side."""
        moved = block.movedim(axis, 0)
        return (matrix @ moved.reshape(moved.shape[0], -1)).reshape(-1, *moved.shape[1:]).movedim(0, axis)

    return one(call, lambda block: along(matrix, block).reshape(len(block), *shape),
               lambda block: along(back, block).reshape(len(block), *own), position=position,
               flops=2 * matrix.indices().shape[1] * (own.numel() // max(own[axis], 1)), resets=True)


def _fully_connected(call: Call, position: int, weight: Tensor, bias: Tensor | None) -> LinearNode:
    """y = W z + b over the last axis; weight is (out, in)."""
    own, shape = call.args[position].shape, call.value.shape
    if weight.numel() == 0:  # from no units, or to none: a constant
        return LinearNode((), offset=None if bias is None else bias.detach().expand(shape), resets=True)

    def apply(block: Tensor) -> Tensor:
        return (block @ weight.mT).reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        return (block.reshape(*block.shape[:-1], weight.shape[0]) @ weight).reshape(block.shape[0], *own)

    offset = None if bias is None else bias.detach().expand(shape)
    flops = 2 * own.numel() * weight.shape[0]
    return one(call, apply, adjoint, position=position, offset=offset, flops=flops, resets=True,
               fully_connected=FullyConnected(weight))


def _lift(block: Tensor, ndim: int) -> Tensor:
    """Broadcasting batch axes line up behind the probe axis."""
    return expand_to(block, torch.Size((1,) * (ndim - block.ndim + 1) + tuple(block.shape[1:])))
