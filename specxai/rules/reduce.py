"""Means and sums over axes."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.rules.base import Call, LinearNode, one, rule


@rule("mean.dim", "mean.default", "sum.dim_IntList", "sum.default")
def reduce(call: Call) -> LinearNode:
    """The sum or the mean over some axes, or all."""
    own, ndim = call.args[0].shape, call.args[0].ndim
    dims = call.arg(1, "dim") if "default" not in str(call.step.target) else None
    dims = [dims] if isinstance(dims, int) else list(dims or range(ndim))
    axes = sorted(d % ndim for d in dims) if ndim else []
    kept = [1 if axis in axes else size for axis, size in enumerate(own)]
    count = 1
    for axis in axes:
        count *= own[axis]
    scale = 1 / count if "mean" in str(call.step.target) else 1
    shape, dtype = call.value.shape, call.value.dtype

    def apply(block: Tensor) -> Tensor:
        total = block.sum([axis + 1 for axis in axes]) if axes else block
        return (total * scale).reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        return (block * scale).reshape(block.shape[0], *kept).expand(block.shape[0], *own)

    def entries() -> tuple[Tensor, Tensor, Tensor]:
        total = torch.arange(shape.numel(), device="cpu").reshape(kept).expand(own).reshape(-1)
        factors = torch.full((own.numel(),), float(scale), dtype=dtype, device="cpu")
        return total, torch.arange(own.numel(), device="cpu"), factors

    return one(call, apply, adjoint, flops=call.args[0].numel(), entries=entries)
