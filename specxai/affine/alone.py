"""What a model makes of each input of a batch by itself, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch._C import _functorch

from specxai.capture.recording import Recording

__all__ = ["each_alone"]

aten = torch.ops.aten


def each_alone(one: Recording, X: Tensor, sides: Sequence[Tensor], steps: Sequence[int]) -> list[Tensor] | None:
    """The values of some steps of the program for one input at each of X (B, ...), each (B, 1, ...).

    `torch.vmap` runs every call for all inputs, and a call sees one of them: its batch has the length 1, and a mean
    over it or a place in it are the input's own.

    one     the recording for one input (1, ...)
    sides   the side inputs of the whole batch; those of another shape than one input's have an entry for each input

    None where the model's code decided something by an input, so that one program need not hold at all of them, and
    where an op does not run under vmap.
    """
    own = one.feed.tensors()
    if one.specialised or len(own) != len(sides):
        return None
    places = [None if ours.shape == theirs.shape else 0 for ours, theirs in zip(own, sides, strict=True)]
    program = replace(one.program, steps=tuple(replace(step, target=_BATCHED.get(step.target, step.target))
                                               for step in one.program.steps))

    def alone(x: Tensor, given: list[Tensor]) -> list[Tensor]:
        given = [side if place is None else side[None] for side, place in zip(given, places, strict=True)]
        values = program.with_sides(given).run(x[None])
        return [values[step] for step in steps]

    _functorch._set_vmap_fallback_warning_enabled(False)  # an op without a rule of vmap's runs in a loop
    try:
        with torch.inference_mode(False), torch.no_grad():
            return torch.vmap(alone, in_dims=(0, places), randomness="error")(X, list(sides))
    except Exception:  # whatever an op may raise that was not written for it; the model can still be run
        return None
    finally:
        _functorch._set_vmap_fallback_warning_enabled(True)


def _batch_norm(x, weight, bias, mean, variance, momentum, eps):
    return torch.native_batch_norm(x, weight, bias, mean, variance, False, momentum, eps)


# Ops without a rule of vmap's -> the same with one.
_BATCHED = {aten._native_batch_norm_legit_no_training.default: _batch_norm}
