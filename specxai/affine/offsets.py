"""The offsets of a graph's nodes, layer by layer, and what they bring to an output: eq. (9), right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from specxai.backends.reference import pull, push
from specxai.capture.program import Program
from specxai.graph import Graph
from specxai.precision import full_precision


def offset_layers(graph: Graph, program: Program, offsets: Mapping[int, Tensor]) -> dict[str, list[int]]:
    """{layer: its nodes that have an offset on a path to the output}, in order."""
    names: dict[str, list[int]] = {}
    relevant = graph.ancestors([program.output])
    for index in offsets:
        if index in relevant:
            names.setdefault(program.steps[index].layer, []).append(index)
    return names


def pushed(graph: Graph, output: int, rows: Sequence[Sequence[int]], offsets: Mapping[int, Tensor],
           width: int) -> Tensor:
    """The offsets of each row of nodes carried to the output, (rows, m), `width` rows at a time."""
    parts = []
    with full_precision(graph.device):
        for start in range(0, len(rows), width):
            inject = {index: (row, offsets[index])
                      for row, ids in enumerate(rows[start:start + width]) for index in ids}
            parts.append(push(graph, {}, [output], inject=inject)[0].reshape(-1, graph.shapes[output].numel()))
    return torch.cat(parts)


def weighed(graph: Graph, output: int, names: Mapping[str, Sequence[int]], offsets: Mapping[int, Tensor],
            weights: Tensor, inputs: int = 1) -> dict[str, Tensor]:
    """{layer: what its offsets bring to the weights of the flat output, (inputs,) float64}, by one adjoint pass.

    inputs   of the network that the values hold, one after the other
    """
    taps: dict[int, list[Tensor]] = {i: [] for ids in names.values() for i in ids}
    with full_precision(graph.device):
        pull(graph, {output: weights.reshape(1, *graph.shapes[output])}, [], taps=taps)
    found = {}
    for name, ids in names.items():
        terms = [(taps[i][0][0].double() * offsets[i].double()).reshape(inputs, -1).sum(1)
                 for i in ids if taps[i]]
        found[name] = sum(terms, torch.zeros(inputs, dtype=torch.float64, device=graph.device)).cpu()
    return found
