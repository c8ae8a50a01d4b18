"""Random probes through the linear nodes: J v and Jᵀu, and how far each node's two directions are from each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specxai.affine.witness import probe, relative
from specxai.backends.reference import pull, push
from specxai.capture.recording import Recording
from specxai.graph import Graph
from specxai.precision import full_precision
from specxai.rules import Term

HALVES = 8
FEW_DIGITS = 1e-4  # rounding above this is worth a warning
MOST_PROBED_UNITS = 1 << 20  # units of all nodes up to which several tangents are as cheap as one


@dataclass(frozen=True)
class Probe:
    """J v and Jᵀu through the nodes: `pushed` (k, m), `pulled` (n,), the forward gap and the step where it is;
    `digits` as it was made with."""

    pushed: Tensor
    pulled: Tensor
    gap: float
    where: int | None
    digits: bool = False


def tangents(graph: Graph, path: list[int], x: Tensor, gradient: Tensor | None) -> Tensor:
    """v, (k, *S): random, and with a part along the gradient in the first, so that ⟨J v, u⟩ is never near zero."""
    units = sum(graph.shapes[step].numel() for step in path)
    v = probe(x.shape, max(1, min(4, MOST_PROBED_UNITS // max(units, 1))), 1, x)
    if gradient is not None and gradient.numel() and torch.isfinite(gradient).all():
        g = gradient.double()
        g = g / (g.abs().max().item() or 1.0)
        if size := g.norm().item():
            v[0] += (g * (v[0].double().norm().item() / size)).to(v.dtype)
    return v


def run_probe(captured: Recording, graph: Graph, path: list[int], u: Tensor, v: Tensor, near: Sequence[Graph] = (),
         weight: float = 0.0, determined: bool = False, digits: bool = False) -> Probe:
    """Both products, and the largest gap between a node's two directions, relative to the terms of ⟨A z, c⟩.

    near, weight   where given, the size of the terms is that before they cancel, and `weight` times what the same node
                   of each of these graphs makes otherwise of the same blocks
    determined     leave out nodes without digits of their own: whose product of a block is not that of its halves
    digits         every number counts, those too that are below the smallest normal one, where products keep none
    """
    source, target = graph.input, captured.program.output
    taps: dict[int, list[Tensor]] = {step: [] for step in path}
    gaps: dict[int, float] = {}

    def watch(step: int, c: Tensor, parts: list) -> None:
        if not taps[step]:
            return
        # All terms of the node by the same, so that their squares neither overflow nor vanish.
        tangents, cotangents = _scale(taps[step][0]), _scale(c)
        value, size = _inner(_over(taps[step][0], tangents), _over(c, cotangents))
        size = size ** 2
        tiny = 0.0 if digits else torch.finfo(c.dtype).tiny
        faint = tiny / tangents * _over(c, cotangents).double().abs().sum()
        for term, part in parts:
            z = v if term.input == source else taps[term.input][0] if taps.get(term.input) else None
            if z is None:
                continue
            if determined and relative(halves(term.apply, z, 0), term.apply(z)) > FEW_DIGITS:
                return
            z, part = _over(z, tangents), _over(part, cotangents)
            other, other_size = _inner(z, part)
            value, size = value - other, size + other_size ** 2
            faint = faint + tiny / cotangents * z.double().reshape(len(z), -1).abs().sum(1)
            if near:
                again = [t for g in near for t in g.nodes[step].terms if t.input == term.input]
                size = size + _before_cancelling(term, z, _over(c, cotangents), again, weight)
        gaps[step] = torch.where(size > 0, (value.abs() - faint).clamp_min(0) / size.sqrt(), 0.0).max().item()

    with torch.no_grad(), full_precision(v.device):
        pushed = push(graph, {source: v}, [target], taps=taps)[0]
        pulled = pull(graph, {target: u.unsqueeze(0)}, [source], watch=watch)[0][0]
    where = max(gaps, key=gaps.get, default=None)
    return Probe(pushed.reshape(len(v), -1), pulled, gaps[where] if where is not None else 0.0, where, digits)


def _before_cancelling(term: Term, z: Tensor, c: Tensor, again: Sequence[Term], weight: float) -> Tensor:
    """The squared size of a term's sums before they cancel, and `weight` times what they make otherwise."""
    pushed, pulled = term.apply(z), term.adjoint(c)
    size = _inner(term.apply(_signs(z)), c)[1] ** 2 + _inner(z, term.adjoint(_signs(c)))[1] ** 2
    others = [(other.apply(z), other.adjoint(c)) for other in again]
    others += [(halves(term.apply, z, draw), halves(term.adjoint, c, draw)) for draw in range(HALVES)]
    for one, two in others:
        size = size + weight ** 2 * (_inner(one - pushed, c)[1] ** 2 + _inner(z, two - pulled)[1] ** 2)
    return size


def _inner(z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """⟨z_i, c⟩ of every row, and √Σ(z_i c)², both in float64."""
    terms = (z.double() * c.double()).reshape(len(z), -1)
    return terms.sum(1), terms.norm(dim=1)


def _scale(block: Tensor) -> float:
    """The largest number of a block in float64 where its square is out of range, else 1."""
    largest = block.abs().max().item() if block.dtype is torch.float64 and block.numel() else 1.0
    return largest if 0 < largest < 1e-60 or 1e60 < largest < math.inf else 1.0


def _over(block: Tensor, scale: float) -> Tensor:
    return block if scale == 1 else block / scale


def aligned(found: Probe, u: Tensor, v: Tensor, gradient: Tensor | None) -> float:
    """⟨J v, u⟩ against ⟨v, g⟩, relative to the terms."""
    if gradient is None:
        return math.inf
    scale = _scale(found.pushed)
    ours, ours_size = _inner(_over(found.pushed, scale), u.reshape(1, -1))
    theirs, theirs_size = _inner(v, _over(gradient.unsqueeze(0), scale))
    size = (ours_size ** 2 + theirs_size ** 2).sqrt()
    return torch.where(size > 0, (ours - theirs).abs() / size, 0.0).max().item()


def _signs(block: Tensor) -> Tensor:
    """The block with random signs: what is made of it is as large as its terms, not as their sum."""
    return torch.where(probe(block.shape[1:], len(block), 2, block) < 0, -block, block)


def halves(product: Callable[[Tensor], Tensor], block: Tensor, draw: int) -> Tensor:
    """The product of the block as the sum of those of two random halves of its units."""
    mask = probe(block.shape[1:], 1, 100 + draw, block) < 0
    return product(block * mask) + product(block * ~mask)


def shaken(block: Tensor, times: float, seed: int, dtype: torch.dtype | None = None) -> Tensor:
    """The block with every number moved by `times` a rounding, of another dtype where one is given, up or down."""
    noise = min(times * torch.finfo(dtype or block.dtype).eps, 0.25)
    return torch.where(probe(block.shape, 1, 3 + seed, block)[0] < 0, block * (1 - noise), block * (1 + noise))
