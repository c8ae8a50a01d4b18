"""What a map between steps of a graph may be asked for: checked here, for every backend and operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specxai.graph.graph import Graph


def check_ends(graph: Graph, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
               columns: Tensor | None = None, rows: Tensor | None = None, taps: Sequence[int] = ()) -> None:
    """Steps of the graph, of which sources and targets are one or more, none twice, and units that these have.

    columns, rows   (units,) int64, the only ones of the sources and targets, none twice; None for all

    Raises TypeError for what holds no steps or units, ValueError for steps and units that there are not.

    >>> import specxai
    >>> graph = specxai.linearize(torch.nn.Linear(3, 2).eval(), torch.ones(1, 3)).graph
    >>> check_ends(graph, [graph.input], [max(graph.nodes)], [], columns=torch.tensor([0, 3]))
    Traceback (most recent call last):
      ...
    ValueError: columns are units of the sources, which have 3, numbered from 0; got 3
    """
    for name, steps in (("sources", sources), ("targets", targets), ("held", held), ("taps", taps)):
        _check_steps(graph, name, steps)
    for name, steps in (("sources", sources), ("targets", targets)):
        if not steps:
            raise ValueError(f"{name} are steps of the graph, one or more, as graph.input or a key of graph.nodes; "
                             "got none")
        if len(set(steps)) < len(steps):
            raise ValueError(f"{name} holds a step twice, {list(steps)}; give each once, and repeat its units in what "
                             "the products give")
    for name, chosen, end, steps in (("columns", columns, "sources", sources), ("rows", rows, "targets", targets)):
        if chosen is not None:
            _check_units(name, chosen, end, sum(graph.shapes[step].numel() for step in steps))


def _check_steps(graph: Graph, name: str, steps: Sequence[int]) -> None:
    if isinstance(steps, str) or not isinstance(steps, Sequence):
        raise TypeError(f"{name} is a list of steps of the graph, such as [graph.input]; got {steps!r}")
    for step in steps:
        if not isinstance(step, int) or step not in graph.shapes:
            raise ValueError(f"{name} are steps of the graph, each graph.input or a key of graph.nodes; got {step!r}")


def _check_units(name: str, chosen: Tensor, end: str, units: int) -> None:
    if not isinstance(chosen, Tensor) or chosen.dtype is not torch.int64:
        got = chosen.dtype if isinstance(chosen, Tensor) else type(chosen).__name__
        raise TypeError(f"{name} is a tensor of units' numbers in torch.int64, got {got}; take .nonzero().flatten() of "
                        "a mask, .long() of other numbers")
    if chosen.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(chosen.shape)}, but is one number a unit; take {name}.flatten()")
    wrong = chosen[(chosen < 0) | (chosen >= units)]
    if len(wrong):
        raise ValueError(f"{name} are units of the {end}, which have {units:,}, numbered from 0; got {int(wrong[0])}")
    if int(torch.zeros(units, dtype=torch.bool, device=chosen.device).index_fill_(0, chosen, True).sum()) < len(chosen):
        raise ValueError(f"{name} names a unit twice; give each once, as by {name}.unique()")
