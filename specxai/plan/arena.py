"""Where a plan's buffers lie: each has its place from the stage that writes it to the last that reads it."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

LINE = 16  # a buffer's rows start at a multiple, so that reuse finds them aligned


@dataclass(frozen=True)
class Buffer:
    """Rows [start, start + size) of the numbering before the layout, alive from stage `born` to stage `last`.

    Stage `born` writes it, the caller for −1.
    """

    start: int
    size: int
    born: int
    last: int


def lay_out(buffers: Sequence[Buffer]) -> tuple[list[int], int]:
    """(each buffer's first row in the arena, the rows that it needs): first fit, the largest first."""
    places, taken = [0] * len(buffers), []
    for at in sorted(range(len(buffers)), key=lambda i: (-buffers[i].size, buffers[i].born)):
        buffer, start = buffers[at], 0
        for place, size, other in taken:  # by place
            # A stage's inputs live through it, so that nothing is read and written in one place.
            if other.last < buffer.born or buffer.last < other.born:
                continue
            if place - start >= buffer.size:
                break
            start = max(start, -(-(place + size) // LINE) * LINE)
        places[at] = start
        insort(taken, (start, buffer.size, buffer), key=lambda item: item[0])
    return places, max((place + buffer.size for place, buffer in zip(places, buffers, strict=True)), default=0)
