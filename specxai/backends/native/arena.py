"""Where a plan's buffers lie: each has its place from the stage that writes it to the last that reads it."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

LINE = 16  # a buffer's rows start at a multiple, so that reuse finds them aligned


@dataclass
class Buffer:
    """Rows [start, start + size) of the arena's virtual numbering, alive from stage `born` to stage `last`.

    Stage `born` writes it, the seed for −1.
    """

    start: int
    size: int
    born: int
    last: int
    place: int = 0


def lay_out(buffers: list[Buffer]) -> int:
    """First fit, the largest first; the rows that the arena needs."""
    taken: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.born)):
        start = 0
        for other in taken:  # by place
            # A stage's inputs live through it, so that nothing is read and written in one place.
            if other.last < buffer.born or buffer.last < other.born:
                continue
            if other.place - start >= buffer.size:
                break
            start = max(start, -(-(other.place + other.size) // LINE) * LINE)
        buffer.place = start
        insort(taken, buffer, key=lambda b: b.place)
    return max((b.place + b.size for b in buffers), default=0)
