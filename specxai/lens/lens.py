"""A fitted lens: one matrix J_l (d, d) a source layer, what it was fitted on, and how a residual is read through it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from specxai.lens.decoder import Decoder
from specxai.lens.factors import LowRank, OnDemand
from specxai.lens.file import read, write
from specxai.precision import full_precision

MEASURED = {"rough_error", "rough_kind", "n_prompts"}  # of a fit, and no setting; the last by TransformerLens


@dataclass(frozen=True, eq=False)
class Lens:
    """The Jacobian lens of a model: J_l = E[∂h_L / ∂h_l] from block l's output to the last block's.

    Attributes:
        J: {layer: (d, d)}, float32, or float64 where the model is; with a rank, made of the factors on demand.
        n_prompts: how many prompts the mean is over.
        d_model: d, the width of the residual stream.
        metadata: plain values: model_class, stack, target_layer, skip_first, max_length, gates, estimator.
        factors: {layer: LowRank} of a fit with a rank, else empty.
        model: the model that `readout` uses where none is given; not saved.

    Example:
        >>> import torch, specxai
        >>> from specxai.zoo.gpt import GPT
        >>> model = GPT(vocabulary=9, width=8, heads=2, blocks=3, context=16).eval()
        >>> L = specxai.lens.fit(model, [torch.arange(8)[None]], skip_first=2)
        >>> L.J[0].shape, L.n_prompts, L.readout(torch.zeros(5, 8), 0).shape
        (torch.Size([8, 8]), 1, torch.Size([5, 9]))
    """

    J: Mapping[int, Tensor]
    n_prompts: int
    d_model: int
    metadata: dict = field(default_factory=dict)
    factors: Mapping[int, LowRank] = field(default_factory=dict)
    model: Decoder | None = field(default=None, repr=False)

    @property
    def source_layers(self) -> list[int]:
        """The layers, ascending."""
        return sorted(self.J)

    def transport(self, h: Tensor, layer: int) -> Tensor:
        """J_l h for residuals h (*, d) of block `layer`; the target block's own are returned as they are.

        Raises KeyError for a layer that was not fitted, TypeError for token ids, ValueError for another width.
        """
        if not isinstance(h, Tensor) or not h.is_floating_point():
            got = h.dtype if isinstance(h, Tensor) else type(h).__name__
            raise TypeError(f"h is {got}: a lens reads residuals (*, {self.d_model}), not token ids; take them "
                            "with specxai.lens.residuals(model, ids)")
        if h.shape[-1:] != (self.d_model,):
            raise ValueError(f"h has shape {tuple(h.shape)}: the lens reads residuals (*, {self.d_model})")
        if layer == self.metadata.get("target_layer") and layer not in self.J:
            return h
        if layer not in self.J:
            raise KeyError(f"layer {layer} is not in this lens, which has {_ranges(self.source_layers)}")
        with full_precision(h.device):
            if layer in self.factors:
                return self.factors[layer].transport(h)
            return h @ self.J[layer].to(h).T

    @torch.no_grad()
    def readout(self, h: Tensor, layer: int, model: nn.Module | None = None) -> Tensor:
        """Logits (*, vocabulary), unembed(norm(J_l h)), of residuals h (*, d) of block `layer`.

        What comes behind the model's last block is run as the model runs it, with caps and scales of its logits.

        Raises ValueError where neither the lens nor the call has a model; errors of `transport`.
        """
        if model is None and self.model is None:
            raise ValueError("the lens has no model to read with (a file holds none): give readout(h, layer, "
                             "model=model)")
        decoder = self.model if model is None else Decoder(model, self.metadata.get("stack"))
        moved = self.transport(h, layer)
        read = decoder.read(moved.reshape(-1, self.d_model))
        return read.reshape(*h.shape[:-1], read.shape[-1])

    def merge(self, *others: Lens) -> Lens:
        """The lens of all prompts together, of lenses that were fitted on different ones.

        A mean weighted by `n_prompts`; low-rank lenses become dense ones.

        Raises ValueError where layers, widths or settings differ, TypeError for what is no lens.
        """
        lenses = (self, *others)
        for other in others:
            if not isinstance(other, Lens):
                raise TypeError(f"merge takes lenses, got {type(other).__name__}; read a file by specxai.lens.load")
            for what, mine, theirs in (("layers", self.source_layers, other.source_layers),
                                       ("d_model", self.d_model, other.d_model),
                                       *((key, self.metadata.get(key), other.metadata.get(key))
                                         for key in sorted({*self.metadata, *other.metadata} - MEASURED))):
                if mine != theirs:
                    raise ValueError(f"lenses of different {what} cannot be merged: {mine!r} and {theirs!r}")
        total = sum(lens.n_prompts for lens in lenses)
        if any(lens.n_prompts < 1 for lens in lenses):
            raise ValueError("a lens that says n_prompts = 0 has no weight in a merge; fit it again")
        J = {layer: sum(lens.J[layer] * (lens.n_prompts / total) for lens in lenses) for layer in self.source_layers}
        counted = {"n_prompts": total} if "n_prompts" in self.metadata else {}
        return Lens(J, total, self.d_model, {**self.metadata, **counted}, model=self.model)

    def save(self, path: str | os.PathLike, dtype: torch.dtype = torch.float16) -> None:
        """Write the reference's file (`J`, `n_prompts`, `source_layers`, `d_model`, `metadata`), whole or not at all.

        Raises ValueError where the numbers do not fit into `dtype`, TypeError where that is none of real numbers.
        """
        write(path, self.J, self.n_prompts, self.d_model, self.metadata, self.factors, dtype)

    def __repr__(self) -> str:
        rank = f", rank {max(len(part.S) for part in self.factors.values())}" if self.factors else ""
        return (f"Lens(layers {_ranges(self.source_layers)}, d {self.d_model}, {self.n_prompts} "
                f"prompt{'s' * (self.n_prompts != 1)}{rank})")


def load(path: str | os.PathLike, model: nn.Module | None = None) -> Lens:
    """Read a lens, ours, the reference's or TransformerLens', or a checkpoint of a fit, whose sums become means.

    Matrices (d, d) are float32, on the CPU.  `model` is what `readout` then uses.

    Raises FileNotFoundError, or FileError (a ValueError) that says what is wrong with the file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Lens({0: torch.eye(3)}, 5, 3).save(f"{folder}/lens.pt")
    ...     load(f"{folder}/lens.pt")
    Lens(layers 0, d 3, 5 prompts)
    """
    J, count, metadata, factors = read(path)
    decoder = None if model is None else Decoder(model, metadata.get("stack"))
    return Lens(OnDemand(factors) if factors else J, count, next(iter(J.values())).shape[0], metadata, factors, decoder)


def _ranges(layers: list[int]) -> str:
    whole = layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 2
    return f"{layers[0]} to {layers[-1]}" if whole else ", ".join(map(str, layers))
