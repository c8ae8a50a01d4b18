"""Products of float32-grade on bfloat16 tensor cores, by a library's own: factors as sums of bfloat16 numbers.

x = x₁ + x₂ + x₃ holds 24 bits.  With a weight in bfloat16 three products are all; with one in float32, split likewise,
the six largest of nine leave 6e-9 of relative rounding (`specxai.kernels.precision`, bf16x6).  On an H100 six take
0.45 of the time of float32 multiply-adds.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import torch
from torch import Tensor

from specxai.backends.whole.steps import root_of, weights_of
from specxai.graph import Graph

PARTS = 3


def split(x: Tensor) -> list[Tensor]:
    """Of a float32 tensor three in bfloat16, the largest first; of one in bfloat16 itself.

    >>> sum(part.double() for part in split(torch.tensor([1 / 3]))).sub(torch.tensor([1 / 3])).abs().item() < 1e-8
    True
    """
    if x.dtype is torch.bfloat16:
        return [x]
    parts = []
    for _ in range(PARTS):
        parts.append(x.bfloat16())
        x = x - parts[-1]
    return parts


def product(rows: Tensor, weight: list[Tensor]) -> Tensor:
    """rows (n, k) float32 times the weight (k, m) that was split, the smallest products first: (n, m) float32."""
    total = None
    parts = split(rows)
    pairs = [(a, b) for a in range(len(parts)) for b in range(len(weight)) if a + b < PARTS]
    for a, b in sorted(pairs, key=lambda pair: -sum(pair)):
        total = _added(total, parts[a], weight[b])
    return total


def _added(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    if left.device.type != "cuda":  # no products of bfloat16 that are float32: for tests
        made = left.float() @ right.float()
        return made if total is None else total.add_(made)
    if total is None:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.addmm(total, left, right, out_dtype=torch.float32)


def with_split_weights(graph: Graph, kept: Container[int] = ()) -> Graph:
    """The graph whose fully connected layers multiply so, both ways; of float32.

    kept   steps whose own blocks are asked for
    """
    nodes = dict(graph.nodes)
    for step, weight in weights_of(graph).items():
        term = graph.nodes[step].terms[0]
        root = root_of(graph, term.input, kept)
        times = _Times(weight.detach(), graph.shapes[root], graph.shapes[step])
        nodes[step] = replace(graph.nodes[step], terms=(replace(term, input=root, apply=times.forward,
                                                                adjoint=times.back),))
    return replace(graph, nodes=nodes)


class _Times:
    """z ↦ W z over the last axis of blocks (k, *S), and its adjoint."""

    def __init__(self, weight: Tensor, own: torch.Size, shape: torch.Size) -> None:
        self._parts, self._own, self._shape = split(weight), own, shape

    def forward(self, block: Tensor) -> Tensor:
        rows = block.reshape(-1, self._parts[0].shape[1])
        return product(rows, [part.mT for part in self._parts]).reshape(len(block), *self._shape)

    def back(self, block: Tensor) -> Tensor:
        rows = block.reshape(-1, self._parts[0].shape[0])
        return product(rows, self._parts).reshape(len(block), *self._own)
