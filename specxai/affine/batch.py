"""The affine maps at several inputs of one shape, in one block: where a model treats each input of a batch for itself,
J = diag(J_1 … J_B), and one product with J is a product with every J_i."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from specxai.affine.captured import local_at
from specxai.affine.local import Local
from specxai.affine.offsets import weighed
from specxai.capture.feed import Feed
from specxai.errors import SpecXAIError
from specxai.operators import LinearOperator

__all__ = ["Batch", "MixedBatch"]


class MixedBatch(SpecXAIError):
    """A model, or a layer, in which the inputs of a batch are not apart, or which cannot take them together."""


class Batch:
    """The affine maps of a model at X (B, ...), as a `Local` whose operators are block-diagonal.

    local     at the whole batch
    count     B

    Raises MixedBatch where the output does not go input by input, and what `specxai.linearize` raises.
    """

    def __init__(self, model: nn.Module, X: Tensor, *, output=None, kwargs: Mapping[str, Any] | None = None,
                 **options) -> None:
        feed, X = Feed.of(model, X, (), kwargs)
        self.local: Local = local_at(model, X, replace(feed, batched=True), output, **options)
        self.count = len(X)
        self.per_input(self.local.output.shape, "the output")

    def per_input(self, shape: torch.Size, name: str) -> torch.Size:
        """(1, ...), what one input has of a value.  Raises MixedBatch where its first axis is not that of the batch."""
        if not len(shape) or shape[0] != self.count:
            raise MixedBatch(f"{name} has shape {tuple(shape)} for {self.count} inputs: its first axis is not theirs")
        return torch.Size((1, *shape[1:]))

    def parts(self, values: Tensor) -> Tensor:
        """(B, per input, k) of a block (B · per input, k), or (B, per input) of a flat value."""
        return values.reshape(self.count, values.shape[0] // self.count, *values.shape[1:])

    def each(self, block: Tensor) -> Tensor:
        """The same block (per input, k) for every input: (B · per input, k)."""
        return block.repeat(self.count, 1)

    def check_same(self, ours: Tensor, theirs: Tensor) -> None:
        """Raises MixedBatch where values (j, ...) of inputs of the batch are not those (j, 1, ...) of each alone."""
        same = theirs.shape == (len(ours), 1, *ours.shape[1:])
        if same:
            theirs, finite = theirs[:, 0], torch.isfinite(theirs[:, 0])
            gap, size = (torch.where(finite, value, 0).double().reshape(len(ours), -1).norm(dim=1)
                         for value in (ours - theirs, theirs))
            near = gap <= torch.finfo(theirs.dtype).eps ** 0.5 * size
            same = bool(near.all() & (finite == torch.isfinite(ours)).all())
        if not same:
            raise MixedBatch(f"{self.local.model_name} mixes the inputs of a batch")

    def pulled(self, operator: LinearOperator, weights: Tensor, seed: int = 0) -> Tensor:
        """Rᵢᵀwᵢ (B, n) of weights (B, m), certified to depend on each input's own weights only.

        Weights times a random number an input have to give the result times that number.  Raises MixedBatch where not.
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)
        scales = torch.randn(self.count, generator=generator, dtype=torch.float64, device="cpu").to(weights)
        block = torch.stack([weights, scales[:, None] * weights], 2).flatten(0, 1)
        found = self.parts(operator.rmatmat(block))
        gap = (found[..., 1] - scales[:, None] * found[..., 0]).double()
        allowed = torch.finfo(found.dtype).eps ** 0.5 * float(torch.linalg.norm(found.double()))
        if self.count > 1 and not float(torch.linalg.norm(gap)) <= allowed:
            raise MixedBatch(f"{self.local.model_name} mixes the inputs of a batch")
        return found[..., 0]

    def bias_contributions(self, weights: Tensor) -> dict[str, Tensor]:
        """{layer: wᵢ·β_l (B,) float64} of weights (B, m).

        Raises MixedBatch where they do not add up to each input's bias.
        """
        local, names = self.local, self.local.offset_layers
        if any(not local.graph.shapes[i].numel() or local.graph.shapes[i].numel() % self.count
               for ids in names.values() for i in ids):
            raise MixedBatch(f"{local.model_name} has offsets that are not those of one input each")
        found = weighed(local.graph, local.captured.program.output, names, local.offsets, weights, self.count)
        # Where a weight is zero an output may be infinite, as masked logits are.
        bias, size = (torch.where(weights != 0, weights.double() * value.reshape(self.count, -1).double(), 0)
                      for value in (local.bias, local.output))
        bias, size = bias.sum(1).cpu(), size.abs().sum(1).cpu()
        total = sum(found.values(), torch.zeros_like(bias))
        size = size + sum((part.abs() for part in found.values()), bias.abs())
        if not bool(((total - bias).abs() <= torch.finfo(weights.dtype).eps ** 0.5 * size).all()):
            raise MixedBatch(f"{local.model_name} has offsets that do not go input by input")
        return found
