"""The reference backend: plain PyTorch, dense masks, any dtype and device.  It is the meaning of every other one.

Blocks of k probes run through the linear nodes forward (J) or in reverse (Jᵀ); a value is dropped after its last use.
It shares the rules with every backend: the witness that shares nothing is torch's own derivative of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from specxai.backends.engine import Passed
from specxai.graph import Graph
from specxai.graph.ends import check_ends
from specxai.rules import Term

LIVE_PROBES = 2  # one is enough with probability one; the second guards against a chance underflow


class ReferenceBackend:
    """Products through whole values: the meaning of every other backend."""

    name = "reference"
    plan_from = 0  # it makes no plan

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def products(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                 columns: Tensor | None = None, rows: Tensor | None = None, taps: Sequence[int] = ()) -> WholeValues:
        return WholeValues(self.graph, sources, targets, held, columns, rows, taps)

    def live_units(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                   columns: Tensor | None = None, rows: Tensor | None = None) -> dict[int, Tensor]:
        return live_units(self.graph, sources, targets, held, columns, rows)


class WholeValues:
    """Products through whole values: blocks (k, *S) at every step.

    columns, rows   the only live units of the sources and targets (flat, one step after the other), None for all
    """

    backend = "reference"
    has_rough = False

    def __init__(self, graph: Graph, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                 columns: Tensor | None, rows: Tensor | None, taps: Sequence[int] = ()) -> None:
        check_ends(graph, sources, targets, held, columns, rows, taps)
        self._graph, self._sources, self._targets, self._held = graph, sources, targets, held
        self._columns, self._rows = columns, rows
        self._forth = self._back = graph  # which products go through
        self._path = path = graph.between(sources, targets, held)
        self._taps = [step for step in taps if step in path]
        self.precision = str(graph.dtype).removeprefix("torch.")
        # Three times the values: the result beside the block, and what a convolution unfolds.
        self._probe_bytes = 3 * graph.dtype.itemsize * peak_units(graph, path, sources, targets)
        self.opaque: list[int] = []  # there is no plan
        self.instead: list[tuple[int, str, str]] = []
        self.flops = self.flops_run = sum(graph.nodes[index].flops for index in path)

    def expect(self, columns: int, rough: bool = False) -> None:
        """Nothing is prepared."""

    def product_bytes(self, columns: int) -> int:
        return self._probe_bytes * columns

    def bytes_moved(self, columns: int) -> int:
        """Every value written once and read once by each term."""
        shapes, path = self._graph.shapes, self._graph.between(self._sources, self._targets, self._held)
        moved = sum(shapes[index].numel() + sum(shapes[term.input].numel() for term in self._graph.nodes[index].terms)
                    for index in path)
        return moved * self._graph.dtype.itemsize * columns

    def column_cost(self, columns: int, rough: bool = False) -> float:
        return max(1.0, 16 / columns)

    def costs(self) -> list[tuple[int, int, int]]:
        return []

    @torch.no_grad()
    def matmat(self, X: Tensor, rough: bool = False) -> Tensor:
        seeds = self._seeds(X, self._sources, self._columns)
        return _collect(push(self._forth, seeds, self._targets, held=self._held), self._rows)

    @torch.no_grad()
    def rmatmat(self, Y: Tensor, rough: bool = False, passed: Passed | None = None) -> Tensor:
        seeds = self._seeds(Y, self._targets, self._rows)
        taps = {} if passed is None else {step: _Passing(step, passed) for step in self._taps}
        return _collect(pull(self._back, seeds, self._sources, held=self._held, taps=taps), self._columns)

    def _seeds(self, block: Tensor, steps: Sequence[int], live: Tensor | None) -> dict[int, Tensor]:
        """Columns (units, k) as one block (k, *S) a step."""
        sizes = [self._graph.shapes[s].numel() for s in steps]
        if live is not None:
            block = block.new_zeros(sum(sizes), block.shape[1]).index_copy_(0, live, block)
        return {s: part.reshape(block.shape[1], *self._graph.shapes[s])
                for s, part in zip(steps, block.T.split(sizes, dim=1), strict=True)}


class _Passing:
    """A tap that passes its blocks on."""

    def __init__(self, step: int, passed: Passed) -> None:
        self._step, self._passed = step, passed

    def append(self, block: Tensor) -> None:
        self._passed(self._step, block.reshape(block.shape[0], -1).T)


def push(graph: Graph, seeds: Mapping[int, Tensor], targets: Iterable[int], *, held: Iterable[int] = (),
         inject: Mapping[int, tuple[int, Tensor]] | None = None,
         taps: Mapping[int, list] | None = None) -> list[Tensor]:
    """Push blocks (k, *S) at the seeds to the targets.

    held     steps whose value is kept at zero
    inject   step -> (row, tensor (*S)) added to that row of the block where the node's result is formed: offsets.
             Without seeds, k is one more than the last row
    taps     step -> list that the step's block is appended to
    """
    inject, taps, targets, seeds = inject or {}, taps or {}, list(targets), _converted(graph, seeds)
    path = graph.between(seeds, targets, held, entering=inject)
    last = graph.last_use(path, targets)
    some = next(iter(seeds.values())) if seeds else next(tensor for _, tensor in inject.values())
    k = some.shape[0] if seeds else 1 + max(row for row, _ in inject.values())
    blocks: dict[int, Tensor] = dict(seeds)
    for index in path:
        node, total = graph.nodes[index], None
        given = [blocks.get(term.input) for term in node.terms]
        if node.together is not None and any(block is not None for block in given):
            total = node.together(given)
        else:
            for term, block in zip(node.terms, given, strict=True):
                if block is not None:
                    part = term.apply(block)
                    total = part if total is None else total + part
        for term in graph.nodes[index].terms:  # after the sum: an operand may come twice
            if last.get(term.input) == index:
                blocks.pop(term.input, None)
        if index in inject:
            row, tensor = inject[index]
            # A copy: a view of an input may still be read elsewhere.
            total = tensor.new_zeros(k, *graph.shapes[index]) if total is None else total.clone()
            total[row] += tensor
        blocks[index] = total
        if index in taps:
            taps[index].append(total)
    return [blocks[t] if t in blocks else some.new_zeros(k, *graph.shapes[t]) for t in targets]


def pull(graph: Graph, seeds: Mapping[int, Tensor], sources: Iterable[int], *, held: Iterable[int] = (),
         taps: Mapping[int, list] | None = None,
         watch: Callable[[int, Tensor, list[tuple[Term, Tensor]]], None] | None = None) -> list[Tensor]:
    """Pull blocks (k, *S) at the targets back to the sources and taps: the exact transpose of `push`.

    watch   called at each node with its step, its block, and what each of its terms makes of that
    """
    sources, taps, seeds = list(sources), taps or {}, _converted(graph, seeds)
    path = graph.between(sources, seeds, held, entering=taps)
    reached = {*path, *sources}
    blocks: dict[int, Tensor] = dict(seeds)
    # Steps whose block is a tensor of its own, a sum or what an `onto` term made: it may be added to in place.  Any
    # other block may be another step's too, as both summands of a sum get the one of the sum.
    own: set[int] = set()
    for index in reversed(path):
        block, node = blocks.pop(index), graph.nodes[index]
        if index in taps:
            taps[index].append(block)
        together = None if node.back is None else node.back(block)
        parts = []
        for number, term in enumerate(node.terms):
            if term.input not in reached:
                continue
            total = blocks.get(term.input)
            if total is not None and term.onto is not None and watch is None:
                blocks[term.input] = term.onto(block, total, term.input in own)
            else:
                part = term.adjoint(block) if together is None else together[number]
                parts.append((term, part))
                blocks[term.input] = part if total is None else total + part
            if total is not None or term.onto is not None:
                own.add(term.input)
        if watch is not None:
            watch(index, block, parts)
    some = next(iter(seeds.values()))
    return [blocks[s] if s in blocks else some.new_zeros(some.shape[0], *graph.shapes[s]) for s in sources]


def live_units(graph: Graph, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
               columns: Tensor | None = None, rows: Tensor | None = None) -> dict[int, Tensor]:
    """step -> mask of its live units (flat), for the sources and every step between.

    columns, rows   the only live units of the sources and targets (flat, one step after the other), None for all

    A random probe finds both sides at once: its tangent is non-zero at a unit exactly when some path of open gates
    leads there (with probability one), its cotangent exactly when one leads on.
    """
    check_ends(graph, sources, targets, held, columns, rows)
    generator, path = torch.Generator().manual_seed(0), graph.between(sources, targets, held)

    def probes(steps: Sequence[int], chosen: Tensor | None) -> dict[int, Tensor]:
        sizes = [graph.shapes[s].numel() for s in steps]
        drawn = torch.randn(LIVE_PROBES, sum(sizes), generator=generator, dtype=torch.float64, device="cpu").to(
            graph.device, graph.dtype)
        if chosen is not None:
            drawn = torch.zeros_like(drawn).index_copy_(1, chosen, drawn[:, chosen])
        return {s: part.reshape(LIVE_PROBES, *graph.shapes[s])
                for s, part in zip(steps, drawn.split(sizes, 1), strict=True)}

    tangents: dict[int, list[Tensor]] = {s: [] for s in path}
    cotangents: dict[int, list[Tensor]] = {s: [] for s in path}
    with torch.no_grad():
        push(graph, probes(sources, columns), targets, held=held, taps=tangents)
        back = pull(graph, probes(targets, rows), sources, held=held, taps=cotangents)
    masks = {s: _nonzero(block) for s, block in zip(sources, back, strict=True)}
    if columns is not None:
        allowed = torch.zeros(sum(len(mask) for mask in masks.values()), dtype=torch.bool, device=graph.device)
        allowed[columns] = True
        masks = {s: mask & part for (s, mask), part in zip(
            masks.items(), allowed.split([len(mask) for mask in masks.values()]), strict=True)}
    for step in path:
        if tangents[step] and cotangents[step]:
            masks[step] = _nonzero(tangents[step][0]) & _nonzero(cotangents[step][0])
        elif tangents[step] and step in targets:
            masks[step] = _nonzero(tangents[step][0])
        else:
            masks[step] = torch.zeros(graph.shapes[step].numel(), dtype=torch.bool, device=graph.device)
    return masks


def peak_units(graph: Graph, path: list[int], sources: Iterable[int], targets: Iterable[int]) -> int:
    """The most units alive at once when one probe runs over `path`."""
    last = graph.last_use(path, targets)
    alive = {s: graph.shapes[s].numel() for s in sources}
    peak = sum(alive.values())
    for index in path:
        alive[index] = graph.shapes[index].numel()
        peak = max(peak, sum(alive.values()))
        for term in graph.nodes[index].terms:
            if last.get(term.input) == index:
                alive.pop(term.input, None)
    return max(peak, 1)


def _converted(graph: Graph, seeds: Mapping[int, Tensor]) -> dict[int, Tensor]:
    return {step: block.to(graph.dtype) for step, block in seeds.items()}


def _collect(blocks: list[Tensor], live: Tensor | None) -> Tensor:
    units = torch.cat([block.reshape(block.shape[0], block.shape[1:].numel()) for block in blocks], 1)
    return (units if live is None else units.index_select(1, live)).T.contiguous()


def _nonzero(block: Tensor) -> Tensor:
    return (block != 0).any(0).flatten()
