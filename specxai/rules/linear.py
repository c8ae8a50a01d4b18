"""Fully connected maps, and products of matrices of which one factor or both are live."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.rules.base import Call, FullyConnected, HeldProduct, LinearNode, Term, expand_to, one, rule, sum_to
from specxai.rules.product import bilinear, plus


@rule("linear.default")
def linear(call: Call) -> LinearNode | None:
    """y = W z + b over the last axis, with constant weights."""
    if call.ref(1) is None and call.ref(0) is not None and call.ref(2) is None:
        return _fully_connected(call, 0, call.args[1], call.arg(2, "bias"))
    return None


@rule("addmm.default", "addmv.default", "baddbmm.default")
def add_product(call: Call) -> LinearNode | None:
    """β z₀ + α z₁ z₂."""
    bias, left, matrix = call.args[:3]
    beta, alpha = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1)
    if left.layout is not torch.strided or matrix.layout is not torch.strided:
        return None
    if call.only(1) and beta == alpha == 1 and matrix.ndim == 2:
        return _fully_connected(call, 1, matrix.mT, bias)
    return plus(matrix_product(call, 1, 2, alpha), call, 0, beta)


@rule("mm.default", "matmul.default", "bmm.default", "mv.default", "dot.default", "_sparse_mm.default")
def matmul(call: Call) -> LinearNode | None:
    """A product with a constant matrix, dense or sparse, on either side."""
    left, right = call.args[:2]
    if any(part.layout is not torch.strided for part in (left, right)):
        return _sparse(call)
    if call.only(0) and right.ndim == 2:
        return _fully_connected(call, 0, right.mT, None)
    return matrix_product(call, 0, 1, value=call.value.detach())


def matrix_product(call: Call, first: int, second: int, by: float = 1.0, value: Tensor | None = None) -> LinearNode:
    """by · z₁ z₂ of matrices or vectors, stacked in any way that broadcasts; one factor or both are live.

    value   z₁ z₂ where that is known
    """
    left, right = call.args[first].detach(), call.args[second].detach()
    live = [call.ref(position) is not None for position in (first, second)]
    if value is None and live[0] == live[1]:
        value = torch.matmul(left, right)
    left = left.unsqueeze(0) if left.ndim == 1 else left
    right = right.unsqueeze(1) if right.ndim == 1 else right
    if not any(live):
        return LinearNode((), offset=by * value)

    def of_left(share: float) -> Term:
        return _matrix_term(call, first, left.shape, right if share * by == 1 else share * by * right, False)

    def of_right(share: float) -> Term:
        return _matrix_term(call, second, right.shape, left if share * by == 1 else share * by * left, True)

    if all(live):
        return bilinear(call, (first, second), of_left, of_right, value if by == 1 else by * value)
    return LinearNode((of_left(1.0) if live[0] else of_right(1.0),), resets=True)


def _matrix_term(call: Call, position: int, mine: torch.Size, held: Tensor, from_left: bool) -> Term:
    """z ↦ z · held, or held · z where the held factor stands on the left; `mine` is z's shape as matrices."""
    shape, own = call.value.shape, call.args[position].shape
    batch = torch.broadcast_shapes(mine[:-2], held.shape[:-2])
    rows, columns = (held.shape[-2], mine[-1]) if from_left else (mine[-2], held.shape[-1])
    times = _times_columns if from_left else _times_rows

    def apply(block: Tensor) -> Tensor:
        return times(block.reshape(block.shape[0], *mine), held, batch).reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        whole = block.reshape(block.shape[0], *batch, rows, columns)
        return sum_to(times(whole, held.mT, batch), mine).reshape(block.shape[0], *own)

    inner = held.shape[-1] if from_left else held.shape[-2]
    # A live factor that is broadcast sums over its stack: more than one product.
    product = HeldProduct(held.expand(*batch, *held.shape[-2:]).flatten(0, -3) if batch else held[None],
                          from_left) if mine[:-2] == batch else None
    return Term(call.ref(position), apply, adjoint, 2 * batch.numel() * rows * columns * inner, product=product)


def adjoint_of(product: HeldProduct, block: Tensor) -> Tensor:
    """What of a block (k, *S) at the product of a `HeldProduct` reaches its live factor, (k, stack, ·, ·), in the dtype
    of the held one.
    """
    held, times = product.held, _times_columns if product.from_left else _times_rows
    ends = (held.shape[1], -1) if product.from_left else (-1, held.shape[2])
    return times(block.to(held.dtype).reshape(len(block), len(held), *ends), held.mT, held.shape[:1])


def _times_rows(block: Tensor, held: Tensor, batch: torch.Size) -> Tensor:
    """(k, *B, m, n) · (*B, n, p): the rows of all probes are one matrix a batch, so that `held` is not copied."""
    k, (m, n), p = block.shape[0], block.shape[-2:], held.shape[-1]
    if held.ndim == 2:
        return expand_to(block, torch.Size((*batch, m, n))) @ held
    block = expand_to(block, torch.Size((*batch, m, n))).reshape(k, batch.numel(), m, n)
    rows = block.transpose(0, 1).reshape(batch.numel(), k * m, n)
    out = rows @ held.expand(*batch, n, p).reshape(batch.numel(), n, p)
    return out.reshape(batch.numel(), k, m, p).transpose(0, 1).reshape(k, *batch, m, p)


def _times_columns(block: Tensor, held: Tensor, batch: torch.Size) -> Tensor:
    """(*B, m, n) · (k, *B, n, p): the columns of all probes are one matrix a batch."""
    k, (n, p), m = block.shape[0], block.shape[-2:], held.shape[-2]
    if held.ndim == 2:
        return held @ expand_to(block, torch.Size((*batch, n, p)))
    block = expand_to(block, torch.Size((*batch, n, p))).reshape(k, batch.numel(), n, p)
    columns = block.permute(1, 2, 0, 3).reshape(batch.numel(), n, k * p)
    out = held.expand(*batch, m, n).reshape(batch.numel(), m, n) @ columns
    return out.reshape(batch.numel(), m, k, p).permute(2, 0, 1, 3).reshape(k, *batch, m, p)


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
