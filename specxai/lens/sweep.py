"""One adjoint sweep: what a cotangent at the target is at every source layer, averaged over positions at once.

For a prompt with valid positions V the lens's row i is the mean over p in V of Σ_{p′ in V} ∂h_L[p′, i] / ∂h_l[p, :]: a
cotangent e_i at every valid target position, pulled back.  Causality leaves the p′ ≥ p.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from specxai._blocks import give_back
from specxai.affine.operator import LocalOperator
from specxai.lens import whole
from specxai.lens.linear import Linearised
from specxai.lens.segments import Segment, most_held

COLUMNS = 64  # of a block by a plan, whose rate more do not raise
WIDE = 256  # of one by matrices of positions, which are read once a block

Rough = bool | torch.dtype  # the operator's own rough products or not; or the dtype of those by whole values
Part = tuple[int, int, Tensor]  # (number of a source, first row, rows of its lens)


def sweep(found: Linearised, rows: Tensor, rough: Rough = False) -> Tensor:
    """(sources, k, d): the cotangents `rows` (k, d), each at all valid positions of the target, pulled back to every
    source and averaged over its valid positions.

    rough   what `rough_of` says
    """
    means = torch.zeros(len(found.sources), *rows.shape, dtype=rows.dtype, device=rows.device)
    for number, start, part in swept(found, rows, rough):
        means[number, start:start + len(part)] = part
    return means


def swept(found: Linearised, rows: Tensor, rough: Rough = False) -> Iterator[Part]:
    """The parts of `sweep`, as they are found: segment by segment, so that no other's plan is there, with all blocks
    of a group, whose cotangents are kept in between.
    """
    if isinstance(rough, torch.dtype) or not found.planned:
        yield from whole.swept(found, rows, rough if isinstance(rough, torch.dtype) else None)
        return
    for first, group in _pieces(rows, group_columns(found)):
        held = group.T.to(found.local.graph.dtype)
        for segment in found.segments:
            for step in segment.apart:
                alone = Segment(step, segment.target)
                into = held.new_empty(len(found.at_source(alone)) * found.width, held.shape[1])
                yield from _pulled(found, alone, None, held, into, rough)
                yield found.sources.index(step), first, _mean_of(found, alone, into)
            given, held = held, _room(found, segment, held)
            for chunk in segment.chunks or (None,):
                for number, start, part in _pulled(found, segment, chunk, given, held, rough):
                    yield number, first + start, part
            if segment.source in found.sources:
                yield found.sources.index(segment.source), first, _mean_of(found, segment, held)


def _room(found: Linearised, segment: Segment, given: Tensor) -> Tensor:
    """(positions that matter · d, k) for the cotangents at a segment's source: those at its target, where the positions
    are the same, so that a chunk takes the place of its own alone.
    """
    after = found.positions[segment.source]
    if segment.target != found.target and after == found.positions[segment.target]:
        return given
    return given.new_empty(len(after) * found.width, given.shape[1])


def _pulled(found: Linearised, segment: Segment, chunk: range | None, given: Tensor, into: Tensor, rough: bool
            ) -> Iterator[Part]:
    """Pull cotangents at a segment's target back to its source, at the positions of a chunk or at all; yields the parts
    of the sources in between.
    """
    before, after = (_places(found, places, chunk) for places in (found.at_target(segment), found.at_source(segment)))
    if before.start == before.stop or after.start == after.stop:
        into[after] = 0
        return
    give_back()
    read = slice(None) if segment.target == found.target else before
    operator = found.along(segment, chunk)
    operator.expect(given.shape[1], rough)
    columns = block_columns(found, operator, COLUMNS if chunk is None else WIDE)
    for start in range(0, given.shape[1], columns):
        piece, means = slice(start, start + columns), {}

        def passed(step: int, cotangents: Tensor, means: dict[int, Tensor] = means) -> None:
            means[step] = cotangents.reshape(found.tokens, found.width, -1)[found.valid].mean(0).T

        into[after, piece] = operator.pull_back(given[read, piece], passed, rough)
        yield from ((found.sources.index(step), start, mean) for step, mean in means.items())


def _places(found: Linearised, positions: list[int], chunk: range | None) -> slice:
    """The rows of a chunk's positions among those of all that matter."""
    inside = [at for at, place in enumerate(positions) if chunk is None or place in chunk]
    return slice(inside[0] * found.width, (inside[-1] + 1) * found.width) if inside else slice(0, 0)


def _mean_of(found: Linearised, segment: Segment, pulled: Tensor) -> Tensor:
    """(k, d): the mean over valid positions of cotangents (positions that matter · d, k) at a segment's source."""
    valid, places = range(found.tokens)[found.valid], found.at_source(segment)
    block = pulled.reshape(len(places), found.width, -1)
    if places != list(valid):
        block = block[[at for at, place in enumerate(places) if place in valid]]
    return block.sum(0, dtype=torch.promote_types(block.dtype, torch.float32)).T / len(valid)


def _pieces(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """(the first, rows), so many at a time."""
    yield from ((start, rows[start:start + size]) for start in range(0, len(rows), size))


def rows_of(found: Linearised, rough: Rough = False) -> Iterator[Part]:
    """All rows of every J_l, part by part."""
    yield from swept(found, unit_rows(found, 0, found.width), rough)


def unit_rows(found: Linearised, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of the identity (d, d)."""
    graph = found.local.graph
    rows = torch.zeros(stop - start, found.width, dtype=graph.dtype, device=graph.device)
    rows[:, start:stop].fill_diagonal_(1)
    return rows


def rough_of(found: Linearised) -> tuple[Rough, str]:
    """(how `sweep` takes fewer digits, what that is): the compiled kernels' own on a CPU, else bfloat16."""
    if found.planned and found.local.graph.device.type == "cpu" and found.along(found.segments[0]).rough():
        return True, "16-bit factors"
    return torch.bfloat16, "bfloat16"


def block_columns(found: Linearised, operator: LocalOperator, worth: int = COLUMNS) -> int:
    """Columns of one block of a plan: what `max_memory` holds, and no more than is worth it."""
    return max(1, min(found.width, operator.block_size, worth))


def group_columns(found: Linearised) -> int:
    """Columns that go through a segment before the next one is planned."""
    if found.planned and len(found.segments) == 1:
        return COLUMNS
    return whole_blocks(found.width, found.tokens * found.width * found.local.graph.dtype.itemsize,
                        found.local.max_memory)


def whole_blocks(width: int, column: int, max_memory: int) -> int:
    """How many of `width` columns, in groups of about one size and of whole blocks: cotangents `most_held` bytes at
    most, or those of one block; `column` bytes each.
    """
    groups = -(-width * column // max(most_held(max_memory), COLUMNS * column))
    return -(-width // (groups * COLUMNS)) * COLUMNS
