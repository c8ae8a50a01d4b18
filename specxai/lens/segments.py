"""Where a prompt's map is cut: between residual streams around which nothing goes, and at what acts by position.

Attention mixes positions, and goes through in blocks of columns.  A feed-forward block does not: it goes through some
positions at a time, with all columns, which one matrix a position serves (`specxai.plan.chains`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specxai.affine.local import Local

MATRICES = 64 << 20  # bytes of the matrices of the positions that go through at a time
HELD = 512 << 20  # bytes of cotangents between two segments, with max_memory for four times as many
MOST = 16  # parts that the positions are cut into, each with a plan
PAYS = 3  # times the multiply-adds of a matrix: what a column must take otherwise


@dataclass(frozen=True)
class Segment:
    """A part of the network that one plan runs: from `source` to `target`, steps of residual streams.

    taps     the other sources in between, which the target's cotangents do not reach through `source` alone
    chunks   positions that go through one after the other, each set by a plan of its own, since none leads to a
             position of another; none for all positions at once
    """

    source: int
    target: int
    taps: tuple[int, ...] = ()
    chunks: tuple[range, ...] = ()


def most_held(max_memory: int) -> int:
    """Bytes of cotangents that may be kept between two segments."""
    return min(HELD, max_memory // 4)


def segments_of(local: Local, sources: Sequence[int], target: int) -> tuple[Segment, ...]:
    """From the target down to the first source, whose maps are planned."""
    graph, first, found = local.graph, sources[0], []
    end, taps = target, ()
    for source in reversed(sources):
        if source == first or not graph.between([first], [target], [source]):
            found += _by_position(local, Segment(source, end, taps))
            end, taps = source, ()
        else:
            taps = (source, *taps)
    return tuple(found)


def _by_position(local: Local, segment: Segment) -> list[Segment]:
    """The segment, cut in two where its last part acts by position and has a middle as wide as pays."""
    graph, (tokens, width) = local.graph, local.graph.shapes[segment.target][-2:]
    size = width * width * graph.dtype.itemsize
    # On other devices a plan takes longer than its products.
    room = MATRICES if graph.device.type == "cpu" else local.max_memory // 12
    if segment.taps or tokens * size <= room or tokens * size > most_held(local.max_memory):
        return [segment]  # one plan has room for the matrices; or too few columns go through together to pay for them
    parts = min(-(-tokens * size // room), MOST)
    chunks = tuple(range(tokens * part // parts, tokens * (part + 1) // parts) for part in range(parts))
    for step in graph.between([segment.source], [segment.target]):
        if (step != segment.target and graph.shapes[step] == graph.shapes[segment.target]
                and not graph.nodes[step].view and not graph.between([segment.source], [segment.target], [step])
                and _pays(local, step, segment.target, chunks)):
            return [Segment(step, segment.target, chunks=chunks), replace(segment, target=step)]
    return [segment]


def _pays(local: Local, source: int, target: int, chunks: Sequence[range]) -> bool:
    """Does no position of a chunk lead to one of another, by so many live units that as many columns as the stream has
    channels pay for a matrix of each position?
    """
    graph, multiply_adds = local.graph, 0
    tokens, width = graph.shapes[target][-2:]
    for chunk in chunks:
        live = local.operator(source, target, source_positions=chunk).live_units()
        reached = live[target].reshape(tokens, width).any(1)
        reached[chunk.start:chunk.stop] = False
        if bool(reached.any()):
            return False
        for step, mask in live.items():
            if step != source and graph.nodes[step].fully_connected is not None:
                read = live[graph.nodes[step].terms[0].input]
                multiply_adds += int(mask.sum()) * int(read.sum()) // len(chunk)
    return multiply_adds > PAYS * tokens * width * width
