"""Norms: a scale and a shift per channel, or the statistics of the value itself: a diagonal plus a low rank.

ẑ = s (z − μ) with s = 1/√(variance + ε): its derivative is s (δ − mean δ − ẑ mean(ẑ δ)), in every group of units over
which the statistics go.  With the scale held, s (δ − mean δ) is left, the centring.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from specxai.rules.base import Call, DiagonalPlusLowRank, LinearNode, along_axes, one, rule
from specxai.rules.elementwise import diagonal


@rule("_native_batch_norm_legit_no_training.default", "batch_norm.default", "_native_batch_norm_legit.default",
      "native_batch_norm.default", "cudnn_batch_norm.default", "miopen_batch_norm.default")
def batch_norm(call: Call) -> LinearNode | None:
    """Batch norm with running statistics: a scale and a shift per channel."""
    if not call.only(0) or call.output != 0:
        return None
    z, weight, bias, mean, variance = call.args[:5]
    if "no_training" in str(call.step.target):
        eps = call.args[6]
    elif call.args[5] is False:
        eps = call.args[7]
    else:
        return _over_channels(call, call.args[7])
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return diagonal(call, _channels(scale, z).detach(), _channels(shift, z).detach().expand(z.shape))


@rule("_native_batch_norm_legit.no_stats")
def instance_norm(call: Call) -> LinearNode | None:
    """Every channel of one input centred and divided by its own spread: diagonal plus low rank, or with the scale
    held.
    """
    return _over_channels(call, call.args[5]) if call.only(0) and call.output == 0 else None


@rule("layer_norm.default")
def layer_norm(call: Call) -> LinearNode | None:
    """The last axes centred and divided by their spread, then a scale and a shift: diagonal plus low rank, or with
    the scale held.
    """
    z, axes = call.args[0], len(call.args[1])
    weight, bias, eps = call.arg(2, "weight"), call.arg(3, "bias"), call.arg(4, "eps", 1e-5)
    if not call.only(0):
        return None
    return _normalised(call, (*z.shape[:z.ndim - axes], -1), weight, bias, eps)


@rule("group_norm.default")
def group_norm(call: Call) -> LinearNode | None:
    """Groups of channels centred and divided by their spread, then a scale and a shift for each channel."""
    z, groups = call.args[:2]
    weight, bias, eps = call.arg(2, "weight"), call.arg(3, "bias"), call.arg(4, "eps", 1e-5)
    if not call.only(0):
        return None
    weight, bias = (None if part is None else _channels(part, z) for part in (weight, bias))
    return _normalised(call, (z.shape[0], groups, -1), weight, bias, eps)


@rule("_fused_rms_norm.default", "rms_norm.default")
def rms_norm(call: Call) -> LinearNode | None:
    """The last axes divided by their root mean square, then a scale: diagonal plus low rank, or with the scale held."""
    z, axes, weight, eps = call.args[0], len(call.args[1]), call.arg(2, "weight"), call.arg(3, "eps")
    if not call.only(0) or call.output != 0:
        return None
    eps = torch.finfo(z.dtype).eps if eps is None else eps
    return _normalised(call, (*z.shape[:z.ndim - axes], -1), weight, None, eps, centred=False)


def _over_channels(call: Call, eps: float) -> LinearNode:
    """The statistics of each channel over the batch and all positions."""
    z, weight, bias = call.args[:3]
    weight, bias = (None if part is None else _channels(part, z) for part in (weight, bias))
    return _normalised(call, (z.shape[0], z.shape[1], -1), weight, bias, eps, over=(0, 2))


def _normalised(call: Call, groups: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float, *,
                over: tuple[int, ...] | None = None, centred: bool = True) -> LinearNode:
    """weight · ẑ + bias, weight and bias broadcast against z.

    groups    z's shape where the axes `over` (default: the last) are those of the statistics
    centred   else μ is 0: the root mean square
    """
    z, shape = call.args[0].detach(), call.args[0].shape
    if z.numel() == 0:
        return LinearNode((), offset=torch.zeros_like(call.value))
    grouped = z.reshape(groups).double()  # once, and where units are nearly equal every digit of ẑ counts
    axes = [axis % grouped.ndim for axis in (over or (-1,))]
    grouped_shape = grouped.shape
    behind = [axis + 1 for axis in axes]
    if centred:
        grouped = grouped - grouped.mean(axes, keepdim=True)
        grouped = grouped - grouped.mean(axes, keepdim=True)  # of what the first mean was rounded by
    scale = torch.rsqrt(grouped.square().mean(axes, keepdim=True) + eps)
    unit = grouped * scale
    rest = (unit * (1 - eps * scale.square())).reshape(shape).to(z.dtype)
    unit, scale = unit.to(z.dtype), scale.to(z.dtype)
    held = call.policy.norm == "held"
    weight = None if weight is None else weight.detach()

    by = scale.expand(grouped.shape).reshape(shape)
    by = by if weight is None else by * weight
    if held and not centred:  # only the scale is left
        return diagonal(call, by, None if bias is None else bias.detach().expand(shape), curved=True)

    def derivative(block: Tensor) -> Tensor:
        """Symmetric: its own adjoint."""
        out = block.reshape(block.shape[0], *groups)
        moved = out
        if centred:
            moved = moved - out.mean(behind, keepdim=True)
        if not held:
            moved = moved - unit * (moved * unit).mean(behind, keepdim=True)
        return (moved * scale).reshape(block.shape[0], *shape)

    def apply(block: Tensor) -> Tensor:
        return derivative(block) if weight is None else derivative(block) * weight

    def adjoint(block: Tensor) -> Tensor:
        return derivative(block if weight is None else block * weight)

    def low_rank() -> DiagonalPlusLowRank:
        """The same as data: the mean and ẑ are what is taken out."""
        count = math.prod(grouped_shape[axis] for axis in axes)
        left, right = [], []
        if centred:
            left.append(-by)
            right.append(torch.full((), 1 / count, dtype=by.dtype, device=by.device))
        if not held:
            own = unit - unit.mean(axes, keepdim=True) if centred else unit
            left.append(-by * unit.reshape(shape))
            right.append((own / count).reshape(shape))
        return DiagonalPlusLowRank(along_axes(grouped_shape, axes), by, tuple(left), tuple(right))

    offset = None if bias is None else bias.detach().expand(shape)
    if not held:  # ẑ minus its derivative at z, which is ẑ ε s²
        rest = rest if weight is None else rest * weight
        offset = rest if offset is None else offset + rest
    return one(call, apply, adjoint, offset=offset, flops=6 * z.numel(), curved=True, low_rank=low_rank)


def _channels(vector: Tensor, z: Tensor) -> Tensor:
    return vector.reshape(1, -1, *(1,) * (z.ndim - 2))
