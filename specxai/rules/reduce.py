"""Sums, means and statistics over axes: every output reads its own slice of the input."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.rules.base import Call, Gate, LinearNode, differentiating, finite, one, rule


@rule("mean.dim", "mean.default", "sum.dim_IntList", "sum.default")
def reduce(call: Call) -> LinearNode:
    """The sum or the mean over some axes, or all."""
    own, ndim = call.args[0].shape, call.args[0].ndim
    dims = call.arg(1, "dim") if "default" not in str(call.step.target) else None
    axes = _axes(dims, ndim)
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

    # What was activated and then summed is a statistic, such as the mean of squares.
    kind = "norm" if call.kind(0) == "activation" else ""
    return one(call, apply, adjoint, flops=call.args[0].numel(), entries=entries, kind=kind)


@rule("var.correction", "var.dim", "var.default", "var_mean.correction", "std.correction", "std.dim", "std.default",
      "std_mean.correction", "linalg_vector_norm.default", "norm.ScalarOpt_dim", "norm.Scalar", "norm.ScalarOpt_dtype",
      "amax.default", "amin.default", "max.default", "min.default", "logsumexp.default", "prod.default",
      "prod.dim_int")
def statistic(call: Call) -> LinearNode | None:
    """The gradient of each output over its own slice; ties of a maximum share it, as in torch.

    held: of a variance, a product of the deviation with itself, half.
    """
    if not call.only(0):
        return None
    z, name, shape = call.args[0].detach(), str(call.step.target), call.value.shape
    with differentiating():
        leaf = z.clone().requires_grad_()
        value = call.step.target(leaf, *call.args[1:], **call.kwargs)
        value = value[call.output] if isinstance(value, tuple) else value
        slope = finite(torch.autograd.grad(value.sum(), leaf)[0])
    axes = _axes(_statistic_dims(call), z.ndim)
    kept = [1 if axis in axes else size for axis, size in enumerate(z.shape)]
    squared = "var" in name and call.output == 0
    if squared and call.policy.product != "tangent":
        slope = slope / 2

    def apply(block: Tensor) -> Tensor:
        total = block * slope
        return (total.sum([axis + 1 for axis in axes]) if axes else total).reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        return block.reshape(block.shape[0], *kept) * slope

    def entries() -> tuple[Tensor, Tensor, Tensor]:
        total = torch.arange(shape.numel(), device="cpu").reshape(kept).expand(z.shape).reshape(-1)
        return total, torch.arange(z.numel(), device="cpu"), slope.reshape(-1)

    offset = None
    if not (squared and call.policy.product != "tangent"):
        offset = call.value.detach() - apply(finite(z).unsqueeze(0))[0]
    mean = "_mean" in name and call.output == 1
    return one(call, apply, adjoint, offset=None if mean else offset, flops=2 * z.numel(), kind="" if mean else "norm",
               entries=entries, gate=None if mean else Gate(call.ref(0), None, None))


def _statistic_dims(call: Call):
    """The axes that the call names."""
    for position, argument in enumerate(call.step.target._schema.arguments):
        if argument.name == "dim":
            return call.arg(position, "dim")
    return None


@rule("sort.default", "sort.stable", "topk.default", "kthvalue.default", "median.dim",
      "mode.default", "cummax.default", "cummin.default")
def chosen(call: Call) -> LinearNode | None:
    """Values at the places that the call finds at x: a gather."""
    if not call.only(0) or call.output != 0:
        return None
    z, shape = call.args[0].detach(), call.value.shape
    _, places = call.step.target(z, *call.args[1:], **call.kwargs)
    if z.ndim == 0:
        return one(call, lambda block: block, lambda block: block)
    axis = _statistic_dims(call)
    axis = (-1 if axis is None else axis) % z.ndim
    whole = places if places.ndim == z.ndim else places.unsqueeze(axis)
    gate = Gate(call.ref(0), places, None)

    def apply(block: Tensor) -> Tensor:
        index = whole.expand(block.shape[0], *whole.shape)
        return block.gather(axis + 1, index).reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        index = whole.expand(block.shape[0], *whole.shape)
        out = block.new_zeros(block.shape[0], *z.shape)
        return out.scatter_add_(axis + 1, index, block.reshape(index.shape))

    return one(call, apply, adjoint, gate=gate, picks=apply)


def _axes(dims: int | list[int] | None, ndim: int) -> list[int]:
    """The axes over which a call goes: all where it names none."""
    dims = [dims] if isinstance(dims, int) else list(dims or range(ndim))
    return sorted({d % ndim for d in dims}) if ndim else []
