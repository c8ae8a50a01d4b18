"""Linear maps of planes that torch has as calls: interpolation, windows cut out and put back, sampling on a grid.

The probes are further images of the batch.  The adjoint is what torch makes of the call's linear map, for all at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specxai.rules.base import Call, LinearNode, differentiating, one, rule


@rule("upsample_nearest1d.default", "upsample_nearest2d.default", "upsample_nearest3d.default",
      "upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec", "_upsample_nearest_exact1d.default",
      "_upsample_nearest_exact2d.default", "_upsample_nearest_exact3d.default", "_upsample_nearest_exact1d.vec",
      "_upsample_nearest_exact2d.vec", "_upsample_nearest_exact3d.vec")
def nearest(call: Call) -> LinearNode:
    """Every output unit is the nearest input unit."""
    return _folded(call, picks=True)


@rule("upsample_linear1d.default", "upsample_linear1d.vec", "upsample_bilinear2d.default", "upsample_bilinear2d.vec",
      "upsample_trilinear3d.default", "upsample_trilinear3d.vec", "upsample_bicubic2d.default",
      "upsample_bicubic2d.vec", "_upsample_bilinear2d_aa.default", "_upsample_bilinear2d_aa.vec",
      "_upsample_bicubic2d_aa.default", "_upsample_bicubic2d_aa.vec", "im2col.default", "col2im.default")
def resample(call: Call) -> LinearNode:
    """Linear, bilinear, trilinear and bicubic interpolation, and windows cut out or put together: fixed weights."""
    return _folded(call)


@rule("grid_sampler_2d.default", "grid_sampler_3d.default")
def grid_sampler(call: Call) -> LinearNode | None:
    """Linear in the image; where the grid is live, it is not."""
    if not call.only(0):
        return None
    grid, rest, target = call.args[1].detach(), call.args[2:], call.step.target

    def sampled(planes: Tensor) -> Tensor:
        times = planes.shape[0] // grid.shape[0]
        return target(planes, grid.repeat(times, *(1,) * (grid.ndim - 1)), *rest)

    return _folded(call, sampled)


def _folded(call: Call, function: Callable[[Tensor], Tensor] | None = None, picks: bool = False) -> LinearNode:
    """A call that is linear in images (N, C, …), with the probes as further images."""
    own, shape = call.args[0].shape, call.value.shape
    target, arguments, options = call.step.target, call.args[1:], call.kwargs
    name = str(target)
    batched = len(own) == (3 if "col2im" in name else 4) if "col" in name else True

    def made(planes: Tensor) -> Tensor:
        return function(planes) if function is not None else target(planes, *arguments, **options)

    def fold(block: Tensor, one: torch.Size) -> Tensor:
        return block.reshape(-1, *(one[1:] if batched else one))

    def apply(block: Tensor) -> Tensor:
        return made(fold(block, own)).reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        planes = fold(block, shape).contiguous()
        with differentiating():
            zero = planes.new_zeros(planes.shape[0], *(own[1:] if batched else own)).requires_grad_()
            pulled = torch.autograd.grad(made(zero), zero, planes)[0]
        return pulled.reshape(block.shape[0], *own)

    def units(numbers: Tensor) -> Tensor:
        return apply(numbers.double()).to(numbers.dtype)  # counts exactly to 2^53

    return one(call, apply, adjoint, flops=8 * call.value.numel(), picks=units if picks else None)
