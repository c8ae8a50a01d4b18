"""A prompt's linear map between blocks: captured once a length, linearised at each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specxai._once import once
from specxai.affine.captured import Captured, capture
from specxai.affine.local import Local
from specxai.affine.operator import LocalOperator
from specxai.affine.positions import summed
from specxai.backends.reference import pull, push
from specxai.errors import LayerError
from specxai.lens.decoder import Between, Decoder
from specxai.lens.prompts import valid_positions
from specxai.lens.segments import Segment, segments_of
from specxai.precision import full_precision
from specxai.rules.policy import Gates

KEPT = 4  # captures, of the last lengths


@dataclass(frozen=True)
class Linearised:
    """The map from the first source block's output to the target's, at one prompt.

    sources, target   steps of the program, each of shape (1, T, d)
    valid             the positions that count
    """

    local: Local
    sources: tuple[int, ...]
    target: int
    valid: slice

    @property
    def width(self) -> int:
        """d."""
        return self.local.graph.shapes[self.target][-1]

    @property
    def tokens(self) -> int:
        """T."""
        return self.local.graph.shapes[self.target][1]

    @property
    def planned(self) -> bool:
        """Do products run plans, whose tables and copies of weights take memory?"""
        return self.local.backend != "reference"

    @once
    def operator(self) -> LocalOperator:
        """From the first source to the target (d, d), summed over valid positions; it passes on the other sources."""
        return self.between(self.sources[0], self.sources[1:])

    @once
    def segments(self) -> tuple[Segment, ...]:
        """From the target down to the first source, cut where nothing goes around; one where none is planned."""
        if not self.planned:
            return (Segment(self.sources[0], self.target, self.sources[1:]),)
        return segments_of(self.local, self.sources, self.target)

    @once
    def positions(self) -> dict[int, list[int]]:
        """Of each source where a segment ends the positions that matter, from valid ones of a source to valid ones of
        the target: a random probe finds them.  Those before the valid ones do not, in a causal model.
        """
        first, cuts = self.sources[0], [segment.target for segment in self.segments[1:]]
        found = {first: list(range(self.tokens)[self.valid])}
        if cuts:
            graph, generator = self.local.graph, torch.Generator().manual_seed(0)
            probe = torch.zeros(1, *graph.shapes[first], dtype=graph.dtype)
            probe[:, :, self.valid].normal_(generator=generator)
            probe, (down, up) = probe.to(graph.device), ({step: [] for step in cuts} for _ in range(2))
            with full_precision(graph.device):
                push(graph, {first: probe}, [self.target], taps=down)
                pull(graph, {self.target: probe}, [first], taps=up)
            for step in cuts:
                reached, wanted = (blocks[0][0, 0].ne(0).any(-1).cpu() if blocks else torch.zeros(self.tokens).bool()
                                   for blocks in (down[step], up[step]))
                reached[self.valid] = True  # from a later source, where nothing leads there from the first
                found[step] = (reached & wanted).nonzero().flatten().tolist()
        return {step: places or list(range(self.tokens)) for step, places in found.items()}

    def along(self, segment: Segment, chunk: range | None = None) -> LocalOperator:
        """The operator of a segment at the positions that matter, of a chunk only or of all, which makes a plan of its
        own; the lens's target is summed over valid ones.
        """
        source, target = ([place for place in places if chunk is None or place in chunk]
                          for places in (self.at_source(segment), self.at_target(segment)))
        return self.local.operator(segment.source, segment.target, taps=segment.taps, source_positions=source,
                                   target_positions=summed(target) if segment.target == self.target else target)

    def at_source(self, segment: Segment) -> list[int]:
        """The positions that matter where a segment begins: valid ones where no other ends there."""
        return self.positions.get(segment.source, list(range(self.tokens)[self.valid]))

    def at_target(self, segment: Segment) -> list[int]:
        """The positions that matter where a segment ends."""
        return list(range(self.tokens)[self.valid]) if segment.target == self.target else self.positions[segment.target]

    def between(self, source: int, taps: Sequence[int] = ()) -> LocalOperator:
        """The same from another source: a new one, which makes a plan of its own."""
        at = summed(self.valid)
        return self.local.operator(source, self.target, source_positions=at, target_positions=at, taps=taps)

    @property
    def value_bytes(self) -> int:
        """About what the nodes hold: as much as the values between the blocks, views aside."""
        graph = self.local.graph
        kept = [step for step, node in graph.nodes.items() if not node.view and any(t.flops for t in node.terms)]
        return sum(graph.shapes[step].numel() for step in kept) * graph.dtype.itemsize

    @property
    def plan_bytes(self) -> int:
        """About what a plan from the first source holds: weights packed for both directions, and tables."""
        nodes = self.local.graph.nodes.values()
        return 4 * sum(node.fully_connected.weight.nbytes for node in nodes if node.fully_connected is not None)


class Linearizer:
    """Makes the linear map of each prompt.

    A capture serves all prompts of its length at which it gives the last block's output; further ones, such as where
    ids are padding that a mask hides, are captured by themselves.
    """

    def __init__(self, decoder: Decoder, layers: list[int], skip_first: int, gates: Gates = "tangent",
                 max_memory: int | None = None, backend: str = "auto") -> None:
        self.decoder, self.layers, self.skip_first = decoder, layers, skip_first
        self.options = {"gates": gates, "max_memory": max_memory, "backend": backend}
        self._kept: dict[int, Captured] = {}

    def at(self, ids: Tensor) -> Linearised:
        """The map at token ids (1, T)."""
        tokens, last = ids.shape[1], len(self.decoder) - 1
        if tokens in self._kept:
            captured = self._kept.pop(tokens)
            self._kept[tokens] = captured  # the last used is the last to go
            streams = self.decoder.residuals(ids, [self.layers[0], last])
            local = captured.linearize(streams[self.layers[0]][None], **self.options)
            if _agree(local.output[0], streams[last]):
                return self._found(local, tokens)
        x = self.decoder.residuals(ids, self.layers[:1])[self.layers[0]][None]
        module = self.decoder.between(ids, self.layers[0], last)
        captured = capture(module, x, verify=False)
        local = captured.linearize(x, verify=True, **self.options)
        if not _reads_ids(module, x, ids):
            self._kept[tokens] = captured
            while len(self._kept) > KEPT:
                self._kept.pop(next(iter(self._kept)))
        return self._found(local, tokens)

    def _found(self, local: Local, tokens: int) -> Linearised:
        program, module = local.captured.program, local.captured.model
        steps = [program.input]
        for layer in self.layers[1:]:
            name = module.layer(layer)
            found = [program.layers[part] for part in program.parts.get(name, ())]
            streams = [step for step in found if local.graph.shapes[step] == local.graph.shapes[program.input]]
            if not streams or any("#" in part for part in program.parts[name]):
                raise LayerError(f"layer {layer} ({name.removeprefix('model.')}) has no residual stream of the first "
                                 "one's shape, or is called several times: a lens needs one (1, T, d) a block")
            steps.append(streams[0])
        return Linearised(local, tuple(steps), program.output, valid_positions(tokens, self.skip_first))


@torch.no_grad()
def _reads_ids(module: Between, x: Tensor, ids: Tensor) -> bool:
    """Do token ids reach the blocks by another way than the residual stream?  Yes where all ids are alike."""
    other = ids.roll(1, 1)
    if torch.equal(other, ids):
        return True
    return not _agree(module.with_ids(other)(x), module(x))


def _agree(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 100 * torch.finfo(one.dtype).eps * other.norm())
