"""Products of an operator through joined whole values: of networks whose units are nearly all live, on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specxai.backends.reference import WholeValues, live_units
from specxai.backends.whole import joined
from specxai.backends.whole.split import with_split_weights
from specxai.backends.whole.steps import weights_of
from specxai.graph import Graph

MOSTLY = 0.7  # of the multiply-adds over live units, from which on a plan spares less than it takes to make


class JoinedProducts(WholeValues):
    """As `WholeValues`, with joined nodes on the way back, and products of float32 by bfloat16 tensor cores.

    splits   are they?  None: on a GPU that has them
    """

    backend = "cuda"

    def __init__(self, graph: Graph, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                 columns: Tensor | None, rows: Tensor | None, taps: Sequence[int] = (),
                 splits: bool | None = None) -> None:
        super().__init__(graph, sources, targets, held, columns, rows, taps)
        kept = (*sources, *targets, *held, *taps)
        whole = joined(graph, kept, splits=splits)
        self._back = whole.graph
        self._forth = with_split_weights(graph, kept) if whole.splits else graph
        self.precision += ", through whole values" + (", out of products of bfloat16" if whole.splits else "")


def is_mostly_live(graph: Graph, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                   columns: Tensor | None, rows: Tensor | None) -> bool:
    """Is nearly all of the work in fully connected layers, with nearly all units live?"""
    path, weights = graph.between(sources, targets, held), weights_of(graph)
    layers = [step for step in path if step in weights]
    if not layers or any(graph.nodes[step].convolution is not None for step in path):
        return False
    live = live_units(graph, sources, targets, held, columns, rows)
    shares = {step: mask.float().mean() for step, mask in live.items()}
    work, spared = 0.0, 0.0
    for step in layers:
        source = graph.nodes[step].terms[0].input
        share = float(shares[step] * shares[source]) if source in shares else float(shares[step])
        work, spared = work + graph.nodes[step].flops, spared + graph.nodes[step].flops * (1 - share)
    return spared < (1 - MOSTLY) * work
