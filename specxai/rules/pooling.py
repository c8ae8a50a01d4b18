"""Pooling: average pooling is linear, max-pooling is a row index chosen at x."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from specxai.rules.base import Call, Gate, LinearNode, differentiating, one, per_axis, rule, selection

LARGEST_PLANE = 4096  # points of a plane whose pooling is written out as a matrix
_WITH_INDICES = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@rule("max_pool1d.default", "max_pool2d.default", "max_pool3d.default", "max_pool2d_with_indices.default",
      "max_pool3d_with_indices.default", "max_pool1d_with_indices.default")
def max_pool(call: Call) -> LinearNode | None:
    """Each window is its winner at x."""
    if call.output != 0:
        return None
    z = call.args[0].detach()
    dims = int(str(call.step.target).split("max_pool")[1][0])
    kernel = per_axis(call.args[1], dims)
    stride = per_axis(call.arg(2, "stride") or kernel, dims)
    padding, dilation = (per_axis(call.arg(at, name, default), dims) for at, name, default in
                         ((3, "padding", 0), (4, "dilation", 1)))
    ceil_mode = bool(call.arg(5, "ceil_mode", False))
    _, winners = _WITH_INDICES[dims](z, kernel, stride, padding, dilation, ceil_mode=ceil_mode, return_indices=True)

    winners = winners.int()  # a plane has fewer than 2^31 points, and every gate is kept

    def crossing(z: Tensor, direction: Tensor) -> Tensor:
        return _pool_crossing(z, direction, kernel, stride, padding, dilation, winners)

    return _select(call, winners, dims, Gate(call.ref(0), winners, crossing if dims < 3 else None))


@rule("adaptive_max_pool1d.default", "adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def adaptive_max_pool(call: Call) -> LinearNode | None:
    """Each window is its winner at x; windows are as many as asked for."""
    if call.output != 0:
        return None
    dims = int(str(call.step.target).split("max_pool")[1][0])
    winners = call.step.target(call.args[0].detach(), *call.args[1:])[1].int()
    return _select(call, winners, dims, Gate(call.ref(0), winners, None))


def _select(call: Call, winners: Tensor, dims: int, gate: Gate) -> LinearNode:
    """Row selection: output unit p of a plane is the plane's input unit `winners[p]`."""
    own, shape = call.args[0].shape, call.value.shape
    rows = winners.reshape(1, -1, shape[-dims:].numel())

    def apply(block: Tensor) -> Tensor:
        planes = block.reshape(block.shape[0], -1, own[-dims:].numel())
        return planes.gather(2, rows.long().expand(block.shape[0], -1, -1)).reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        planes = block.reshape(block.shape[0], -1, rows.shape[2])
        out = block.new_zeros(block.shape[0], rows.shape[1], own[-dims:].numel())
        return out.scatter_add_(2, rows.long().expand(block.shape[0], -1, -1), planes).reshape(block.shape[0], *own)

    return one(call, apply, adjoint, gate=gate, flops=call.value.numel(), picks=apply)


def _pool_crossing(z: Tensor, direction: Tensor, kernel, stride, padding, dilation, winners: Tensor) -> Tensor:
    """Smallest t > 0 at which another member of a window reaches its winner: (z_w − z_u) / (dz_u − dz_w)."""
    dims = len(kernel)
    out = winners.shape[-dims:]
    if dims == 1:  # a line is an image of height one
        z, direction, winners = z.unsqueeze(-2), direction.unsqueeze(-2), winners.unsqueeze(-2)
        kernel, stride, padding, dilation = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
    height, width = z.shape[-2:]
    planes = winners.reshape(-1, 1, winners.shape[-2:].numel()).long()
    # Padding, and what ceil_mode reads beyond it, can never win.
    need = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in
            zip(winners.shape[-2:], stride, dilation, kernel, strict=True)]
    pads = (padding[1], max(0, need[1] - width - padding[1]), padding[0], max(0, need[0] - height - padding[0]))

    def windows(values: Tensor, fill: float) -> Tensor:
        padded = F.pad(values.reshape(-1, 1, height, width), pads, value=fill)[..., :need[0], :need[1]]
        return F.unfold(padded, kernel, dilation=dilation, stride=stride)

    def of_winner(values: Tensor) -> Tensor:
        return values.reshape(planes.shape[0], 1, -1).gather(2, planes)

    gap = of_winner(z) - windows(z, -math.inf)
    gain = windows(direction, 0.0) - of_winner(direction)
    time = torch.where(gain > 0, gap / gain, math.inf)
    return time.amin(1).reshape(*winners.shape[:-2], *out)


@rule("max.dim", "min.dim")
def extreme(call: Call) -> LinearNode | None:
    """Each line along an axis is its largest, or its smallest, unit at x."""
    z = call.args[0].detach()
    if z.ndim == 0:
        return None
    axis, shape, sign = call.args[1] % z.ndim, call.value.shape, 1 if "max" in str(call.step.target) else -1
    winners = call.step.target(z, axis, True)[1]  # (..., 1, ...): one unit of each line

    def crossing(z: Tensor, direction: Tensor) -> Tensor:
        lead = sign * (z.gather(axis, winners) - z)
        gain = sign * (direction - direction.gather(axis, winners))
        return torch.where(gain > 0, lead / gain, math.inf).amin(axis).reshape(shape)

    numbers = torch.arange(z.numel(), device=z.device).reshape(z.shape)
    return selection(call, numbers.gather(axis, winners).reshape(-1), gate=Gate(call.ref(0), winners, crossing))


@rule("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default", "adaptive_avg_pool1d.default",
      "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default", "_adaptive_avg_pool2d.default",
      "_adaptive_avg_pool3d.default")
def average_pool(call: Call) -> LinearNode:
    """Each window is the mean of its units."""
    own, shape = call.args[0].shape, call.value.shape
    dims = int(str(call.step.target).split("avg_pool")[1][0])

    pooling, arguments, options, dtype = call.step.target, call.args[1:], call.kwargs, call.value.dtype

    def pool(planes: Tensor) -> Tensor:
        return pooling(planes, *arguments, **options)

    def apply(block: Tensor) -> Tensor:
        return pool(block.reshape(-1, *own[-dims - 1:])).reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        planes = block.reshape(-1, *shape[-dims - 1:]).contiguous()
        with differentiating():
            zero = planes.new_zeros(planes.shape[0], *own[-dims - 1:]).requires_grad_()
            grad = torch.autograd.grad(pool(zero), zero, planes)[0]
        return grad.reshape(block.shape[0], *own)

    def entries() -> tuple[Tensor, Tensor, Tensor]:
        # Pooling the unit planes gives the matrix of one plane, the same for all.
        size, planes = own[-dims:].numel(), own[:-dims].numel()
        unit = torch.eye(size, dtype=dtype, device="cpu").reshape(size, 1, *own[-dims:])
        matrix = pool(unit).reshape(size, -1)
        inner, outer = matrix.nonzero(as_tuple=True)
        plane = torch.arange(planes, device="cpu")[:, None]
        return ((plane * matrix.shape[1] + outer).reshape(-1), (plane * size + inner).reshape(-1),
                matrix[inner, outer].repeat(planes))

    sparse = entries if own[-dims:].numel() <= LARGEST_PLANE else None
    return one(call, apply, adjoint, flops=call.args[0].numel(), entries=sparse)
