"""Witnesses of a Jacobian that share nothing with the rules: the user's model under autograd, and its differences.

A witness is run at one x.  Reverse mode gives g = ∇(u·f) through the real module; where torch cannot differentiate it,
or may be wrong, central differences of the module's forward pass give J v.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_leaves

from specxai.capture.recording import Recording
from specxai.rules.base import differentiating

SEED = 0x5EC


def probe(shape: torch.Size, rows: int, seed: int, like: Tensor) -> Tensor:
    """Normal numbers (rows, *shape) that depend on nothing global: neither random state nor default dtype or device."""
    generator = torch.Generator("cpu").manual_seed(SEED + seed)
    numbers = torch.randn(rows, *shape, generator=generator, dtype=torch.float64, device="cpu")
    return numbers.to(like.device, like.dtype)


@dataclass(frozen=True)
class Pullback:
    """What torch makes of the model at x.

    output     f(x)
    gradient   ∇(u·f) in x's shape, None where torch raised
    trouble    what torch said then
    custom     names of the functions on the way whose backward is not torch's own
    """

    output: Tensor
    gradient: Tensor | None
    trouble: str = ""
    custom: tuple[str, ...] = ()


def pull_back(captured: Recording, x: Tensor, cotangent) -> Pullback:
    """The model's output and the gradient of u·f, u = `cotangent(f(x))`: one pass each way."""
    with differentiating():
        captured = replace(captured, model=_without_inference_tensors(captured.model))
        leaf = x.detach().clone().requires_grad_()
        output = captured.run_model(leaf)
        value = output.detach()
        if not output.requires_grad:
            return Pullback(value, torch.zeros_like(leaf))
        try:
            gradient = torch.autograd.grad(output, leaf, cotangent(value), allow_unused=True)[0]
        except RuntimeError as error:
            return Pullback(value, None, str(error).strip().split("\n")[0].rstrip("."))
        gradient = torch.zeros_like(leaf) if gradient is None else gradient.detach()
        return Pullback(value, gradient, custom=_custom(output))


@dataclass(frozen=True)
class Difference:
    """J v by central differences: its value (m,), how far two steps disagree, and the dtype of the run."""

    value: Tensor
    error: float
    dtype: torch.dtype


def difference(captured: Recording, x: Tensor, direction: Tensor) -> Difference | None:
    """J v from f(x ± h v), in float64 where the model can be converted, with the step on which two agree best.

    None where the model cannot be run so.
    """
    with torch.inference_mode(False), torch.no_grad():
        for dtype in dict.fromkeys((torch.float64, x.dtype)):
            try:
                model = _copied(captured.model)
                model = replace(captured, model=model if dtype == x.dtype else model.to(dtype),
                                feed=captured.feed.copied(dtype))
                found = _best_difference(model, x.detach().to(dtype), direction.detach().reshape(x.shape).to(dtype))
            except Exception:  # whatever a model may raise in a dtype that it was not written for
                continue
            if found is not None:
                return found
    return None


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of tensors that a forward pass left in the model with a graph, which torch does not copy."""
    kept = (value for module in model.modules() for value in tree_leaves(vars(module)))
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in kept
                                 if isinstance(value, Tensor) and not value.is_leaf})


def _best_difference(captured: Recording, x: Tensor, v: Tensor) -> Difference | None:
    size = x.double().square().mean().sqrt().item() or 1.0
    base = torch.finfo(x.dtype).eps ** (1 / 3) * size / (v.double().square().mean().sqrt().item() or 1.0)
    slopes = []
    for h in (30 * base, 5 * base, base, base / 5, base / 30):
        ahead, behind = (captured.run_model(x + step * v).detach().double().flatten() for step in (h, -h))
        slope = (ahead - behind) / (2 * h)
        slopes.append(torch.where(ahead == behind, 0.0, slope))  # −inf on both sides has not moved
    pairs = [(relative(a, b), b) for a, b in pairwise(slopes)]
    error, best = min(((e, s) for e, s in pairs if e == e), key=lambda pair: pair[0], default=(None, None))
    return None if best is None else Difference(best, error, x.dtype)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ over the larger of the two norms, 0 where both are zero: whatever the scale."""
    ours, theirs = ours.double().flatten(), theirs.double().flatten()
    size = max(ours.abs().max().item(), theirs.abs().max().item()) if ours.numel() else 0.0
    if size == 0:
        return 0.0
    ours, theirs = ours / size, theirs / size  # before anything is squared
    return (ours - theirs).norm().item() / max(ours.norm().item(), theirs.norm().item())


def _without_inference_tensors(model: nn.Module) -> nn.Module:
    """The model, or a copy of it with normal tensors: autograd cannot save those made in inference mode."""
    if not any(t.is_inference() for t in (*model.parameters(), *model.buffers())):
        return model
    return copy.deepcopy(model)


def _custom(output: Tensor) -> tuple[str, ...]:
    """Functions between the output and its leaves whose backward was written by hand."""
    names, seen, stack = [], set(), [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            names.append(type(node).__name__.removesuffix("Backward"))
        stack.extend(parent for parent, _ in node.next_functions)
    return tuple(dict.fromkeys(names))
