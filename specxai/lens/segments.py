"""Where a prompt's map is cut: between residual streams around which nothing goes, and at what acts by position.

Attention mixes positions, and goes through in blocks of columns.  A feed-forward block does not: it goes through some
positions at a time, with all columns, which one matrix a position serves (`specxai.plan.chains`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from specxai.affine.local import Local
from specxai.graph import Graph

MATRICES = 64 << 20  # bytes of the matrices of the positions that go through at a time
HELD = 4  # one part in so many of max_memory may be cotangents between two segments
MOST = 16  # parts that the positions are cut into, each with a plan
PAYS = 3  # times the multiply-adds of a matrix: what a column must take otherwise, so that d columns pay for it


@dataclass(frozen=True)
class Segment:
    """A part of the network that one plan runs: from `source` to `target`, steps of residual streams.

    taps     the other sources in between, which the target's cotangents do not reach through `source` alone
    apart    those of them with units that `source` does not reach, which its plan leaves out
    chunks   positions that go through one after the other, each set by a plan of its own, since none leads to a
             position of another; none for all positions at once
    """

    source: int
    target: int
    taps: tuple[int, ...] = ()
    apart: tuple[int, ...] = ()
    chunks: tuple[range, ...] = ()


def most_held(max_memory: int) -> int:
    """Bytes of cotangents that may be kept between two segments."""
    return max_memory // HELD


def segments_of(local: Local, sources: Sequence[int], target: int) -> tuple[Segment, ...]:
    """From the target down to the first source, whose maps are planned."""
    found: list[Segment] = []
    for part in whole_segments(local.graph, sources, target):
        found += [_tapped(local, part)] if part.taps else _by_position(local, part.source, part.target)
    return tuple(found)


def whole_segments(graph: Graph, sources: Sequence[int], target: int) -> tuple[Segment, ...]:
    """The same of maps that go through whole values: a segment ends where nothing goes around its source."""
    first, found = sources[0], []
    end, taps = target, ()
    for source in reversed(sources):
        if source == first or not graph.between([first], [target], [source]):
            found.append(Segment(source, end, taps))
            end, taps = source, ()
        else:
            taps = (source, *taps)
    return tuple(found)


def _tapped(local: Local, part: Segment) -> Segment:
    live = local.operator(part.source, part.target).live_units()
    apart = tuple(step for step in part.taps if step not in live or
                  bool((local.operator(step, part.target).live_units()[step] & ~live[step]).any()))
    return replace(part, taps=tuple(step for step in part.taps if step not in apart), apart=apart)


def _by_position(local: Local, source: int, target: int) -> list[Segment]:
    """The part from a source to a target, cut around what acts by position and has a middle as wide as pays."""
    graph, (tokens, width) = local.graph, local.graph.shapes[target][-2:]
    size = width * width * graph.dtype.itemsize
    # On other devices a plan takes longer than its products.
    room = MATRICES if graph.device.type == "cpu" else local.max_memory // 12
    if tokens * size <= room or tokens * size > most_held(local.max_memory):
        # One plan has room for the matrices; or too few columns go through together to pay for them.
        return [Segment(source, target)]
    parts = min(-(-tokens * size // room), MOST, tokens)
    chunks = tuple(range(tokens * part // parts, tokens * (part + 1) // parts) for part in range(parts))
    found: list[Segment] = []
    parts_of = pairwise((*_cuts(graph, source, target), target))
    for alone, run in groupby(((start, end, _alone(local, start, end, chunks)) for start, end in parts_of),
                              key=lambda part: part[2] is not None):
        run = list(run)
        start, end = run[0][0], run[-1][1]
        if alone and sum(part[2] for part in run) > PAYS * tokens * width * width:
            found.append(Segment(start, end, chunks=chunks))
        elif found and not found[-1].chunks:
            found[-1] = Segment(found[-1].source, end)
        else:
            found.append(Segment(start, end))
    return found[::-1]


def _cuts(graph: Graph, source: int, target: int) -> list[int]:
    """The source and the steps of the target's shape through which everything between the two goes, views aside."""
    path, found = graph.between([source], [target]), [source]
    readers = {source: source} | {step: step for step in path}
    for step in path:
        readers |= {term.input: step for term in graph.nodes[step].terms if term.input in readers}
    reach = readers[source]  # the last step that reads what lies before
    for step in path:
        if reach <= step < target and graph.shapes[step] == graph.shapes[target] and not graph.nodes[step].view:
            found.append(step)
        reach = max(reach, readers[step])
    return found


def _alone(local: Local, source: int, target: int, chunks: Sequence[range]) -> int | None:
    """Multiply-adds of a column over live units; None where a position of a chunk leads to one of another."""
    graph, multiply_adds = local.graph, 0
    tokens, width = graph.shapes[target][-2:]
    for chunk in chunks:
        live = local.operator(source, target, source_positions=chunk).live_units()
        reached = live[target].reshape(tokens, width).any(1)
        reached[chunk.start:chunk.stop] = False
        if bool(reached.any()):
            return None
        for step, mask in live.items():
            if step != source and graph.nodes[step].fully_connected is not None:
                read = live[graph.nodes[step].terms[0].input]
                multiply_adds += int(mask.sum()) * int(read.sum()) // len(chunk)
    return multiply_adds
