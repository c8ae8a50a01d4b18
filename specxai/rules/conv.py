"""Convolutions, eqs. (10)-(11): 1-d to 3-d, grouped, dilated, strided, transposed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from specxai.rules.base import Call, Convolution, LinearNode, one, per_axis, rule


@rule("conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding")
def convolution(call: Call) -> LinearNode | None:
    """A convolution with a constant kernel in one to three dimensions, grouped, dilated, strided."""
    weight = call.args[1]
    dims = weight.ndim - 2
    stride = per_axis(call.arg(3, "stride", 1), dims)
    dilation = per_axis(call.arg(5, "dilation", 1), dims)
    padding, extra = _padding(call.arg(4, "padding", 0), weight, dilation, dims)
    return _node(call, stride, padding, dilation, False, (0,) * dims, call.arg(6, "groups", 1), extra)


@rule("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def transposed(call: Call) -> LinearNode | None:
    """A transposed convolution with a constant kernel."""
    dims = call.args[1].ndim - 2
    return _node(call, per_axis(call.arg(3, "stride", 1), dims), per_axis(call.arg(4, "padding", 0), dims),
                 per_axis(call.arg(7, "dilation", 1), dims), True, per_axis(call.arg(5, "output_padding", 0), dims),
                 call.arg(6, "groups", 1))


@rule("convolution.default")
def general(call: Call) -> LinearNode | None:
    """Either of them, as torch names it inside."""
    _, _, _, stride, padding, dilation, is_transposed, output_padding, groups = call.args
    dims = call.args[1].ndim - 2
    return _node(call, *(per_axis(v, dims) for v in (stride, padding, dilation)), is_transposed,
                 per_axis(output_padding, dims), groups)


def _node(call: Call, stride, padding, dilation, is_transposed, output_padding, groups, extra=None):
    if not call.only(0):
        return None  # a kernel that depends on x is bilinear
    weight, bias = call.args[1], call.arg(2, "bias")
    own, shape, dims = call.args[0].shape, call.value.shape, weight.ndim - 2
    # `extra` is the asymmetric part of padding="same" with an even kernel.
    inner = own[-dims - 1:] if extra is None else torch.Size(
        [own[-dims - 1], *(n + before + after for n, (before, after) in zip(own[-dims:], extra, strict=True))])

    def apply(block: Tensor) -> Tensor:
        planes = block.reshape(-1, *own[-dims - 1:])
        if extra is not None:
            planes = F.pad(planes, [v for pair in reversed(extra) for v in pair])
        out = torch.ops.aten.convolution(planes, weight, None, stride, padding, dilation, is_transposed,
                                         output_padding, groups)
        return out.reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        planes = block.reshape(-1, *shape[-dims - 1:]).contiguous()
        like = planes.new_empty(1).expand(planes.shape[0], *inner)  # only its shape is read
        grad = torch.ops.aten.convolution_backward(planes, like, weight, None, stride, padding, dilation,
                                                   is_transposed, output_padding, groups, (True, False, False))[0]
        if extra is not None:
            for axis, (before, _) in enumerate(extra):
                grad = grad.narrow(2 + axis, before, own[-dims + axis])
        return grad.reshape(block.shape[0], *own)

    offset = None
    if bias is not None:
        offset = bias.detach().reshape(-1, *(1,) * dims).expand(shape)
    batched = len(own) == dims + 2
    sites = (own if is_transposed else shape)[-dims:].numel() * (own[0] if batched else 1)
    plain = extra is None and batched
    convolution = Convolution(weight, stride, padding, dilation, groups, is_transposed) if plain else None
    return one(call, apply, adjoint, offset=offset, flops=2 * weight.numel() * sites, resets=True,
               convolution=convolution)


def _padding(padding, weight: Tensor, dilation, dims: int):
    """(symmetric padding, extra asymmetric padding or None) for numbers and for "same" and "valid"."""
    if padding == "valid":
        return (0,) * dims, None
    if padding != "same":
        return per_axis(padding, dims), None
    totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if all(total % 2 == 0 for total in totals):
        return tuple(total // 2 for total in totals), None
    return (0,) * dims, [(total // 2, total - total // 2) for total in totals]
