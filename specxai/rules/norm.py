"""Batch norm in eval mode: a scale and a shift per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.rules.base import Call, LinearNode, rule
from specxai.rules.elementwise import diagonal


@rule("_native_batch_norm_legit_no_training.default", "batch_norm.default", "_native_batch_norm_legit.default",
      "native_batch_norm.default", "cudnn_batch_norm.default")
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
        return None  # batch statistics depend on x
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return diagonal(call, _channels(scale, z).detach(), _channels(shift, z).detach().expand(z.shape))


def _channels(vector: Tensor, z: Tensor) -> Tensor:
    return vector.reshape(1, -1, *(1,) * (z.ndim - 2))
