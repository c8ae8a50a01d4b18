"""Stages of a plan over live rows: built and checked once, run on many blocks of probes.

A block is a matrix [row][probe], probes contiguous, `stride` of them: 1, 2, 4, 8 or a multiple of 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.native.checks import array, require_block, require_columns, require_contiguous, require_table, suffix
from specxai.native.module import compiled

PROBE_UNIT = 16  # the stride of a wide block is a multiple of it
LINE = 16  # weights that are read together


def stride_of(probes: int) -> int:
    """The least stride of a block that holds so many probes.

    >>> [stride_of(k) for k in (1, 3, 8, 9, 33)]
    [1, 4, 8, 16, 48]
    """
    if probes <= PROBE_UNIT // 2:
        return 1 << max(0, probes - 1).bit_length()
    return -(-probes // PROBE_UNIT) * PROBE_UNIT


class GatherGemm:
    """output[outside[s, o]] (+)= Σ_{t, c} weight[o, t, c] · input[inside[neighbours[s, t], c]], site by site.

    Tables are int32, and -1 stands for a dead unit, or for no neighbour.  With groups, outputs and inputs are cut into
    as many parts, and each output reads its own part's inputs.

    inside       (positions inside, groups · depth) rows of the input
    outside      (positions outside, width) rows of the output, no two the same
    neighbours   (positions outside, taps) positions inside
    weight       (width, taps, depth)
    across       positions outside of one line of their grid, which is gone through in squares; None for a single line
    own          nobody writes to the weights later: they are kept without a copy where they lie as the kernels read
    may_spread   in `run`: 1 to 8 probes need either the inputs laid out once more, every time, or the weights, once and
                 for good; whichever takes the fewest operations, or without it the weights wherever there is more
                 than one site

    Raises ValueError for an index out of range, two outputs in one row, or tables that do not fit together.

    >>> def i(*rows): return torch.tensor(rows, dtype=torch.int32)
    >>> stage = GatherGemm(inside=i([1, 0]), outside=i([0]), neighbours=i([0]),
    ...                    weight=torch.tensor([[[3.0, 5.0]]]))
    >>> output = torch.empty(1, 16)
    >>> stage.run(torch.tensor([[1.0], [2.0]]).expand(2, 16).contiguous(), output)
    >>> float(output[0, 0])
    11.0
    """

    def __init__(self, *, inside: Tensor, outside: Tensor, neighbours: Tensor, weight: Tensor, groups: int = 1,
                 across: int | None = None, own: bool = False) -> None:
        tables = {"inside": inside, "outside": outside, "neighbours": neighbours}
        for name, table in tables.items():
            require_table(name, table, 2)
        if not isinstance(weight, Tensor) or weight.ndim != 3:
            got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(f"weight must be a tensor (width, taps, depth), got {got}")
        weight = weight.detach().resolve_neg()
        self.dtype, (outputs, taps, depth), width = weight.dtype, weight.shape, outside.shape[1]
        if outputs != width:
            raise ValueError(f"weight has shape {tuple(weight.shape)}, which does not hold {width} outputs")
        if max(len(inside), len(outside)) >= 1 << 31:
            raise ValueError("a stage has fewer than 2^31 positions")
        self._weight = require_contiguous("weight", _packed(weight, own), self.dtype)
        self._stage = getattr(compiled(), f"GatherGemm_{suffix(self.dtype)}")(
            **{name: array(t) for name, t in tables.items()}, weight=array(self._weight), n_inside=len(inside),
            n_outside=len(outside), taps=taps, across=max(1, len(outside)) if across is None else across, groups=groups,
            depth=depth, width=width, pitch=self._weight.shape[2])

    @property
    def multiply_adds(self) -> int:
        """Of one probe."""
        return self._stage.multiply_adds

    def run(self, input: Tensor, output: Tensor, accumulate: bool = False, level: str | None = None,
            rough: bool = False, may_spread: bool = True) -> None:
        """Write (or add to) the outputs' rows of `output` (rows, stride) from `input` (rows, stride).

        The two may be one block where no row is both read and written.  `level` is "scalar", "avx2" or "avx512"
        instead of `simd_level()`, for tests and benchmarks.  `rough` rounds inputs to 13 bits of the largest of their
        column and weights to 12 of the largest of their output, and sums exactly, at twice the rate, where a stage is
        large enough for it; RuntimeError without `has_rough()`.
        """
        rows_in, rows_out = require_block("input", input, self.dtype), require_block("output", output, self.dtype)
        stride = input.shape[1]
        if output.shape[1] != stride:
            raise ValueError(f"input holds {stride} probes a row, output {output.shape[1]}")
        if rough:
            self._stage.run_rough(input.data_ptr(), rows_in, output.data_ptr(), rows_out, stride, accumulate)
        else:
            self._stage.run(input.data_ptr(), rows_in, output.data_ptr(), rows_out, stride, accumulate, may_spread,
                            level)


class RowSum:
    """output[to[e]] (+)= scale[e] · input[source[e]], over all entries e.

    to, source   (entries,) int32 rows
    scale        (entries,) or None for ones
    dtype        of the blocks
    empty        (n,) int32 rows that become zero (or stay, with `accumulate`) where no entry names them; other rows
                 without entries are left alone

    >>> def i(*values): return torch.tensor(values, dtype=torch.int32)
    >>> total = torch.zeros(1, 2)
    >>> RowSum(to=i(0, 0), source=i(0, 1), dtype=torch.float32).run(torch.eye(2), total, 2)
    >>> total
    tensor([[1., 1.]])
    """

    def __init__(self, *, to: Tensor, source: Tensor, dtype: torch.dtype, scale: Tensor | None = None,
                 empty: Tensor | None = None) -> None:
        require_table("to", to, 1)
        require_table("source", source, 1)
        if empty is not None:
            require_table("empty", empty, 1)
        self.dtype = dtype
        scale = None if scale is None else require_contiguous("scale", scale, dtype)
        self._stage = getattr(compiled(), f"RowSum_{suffix(dtype)}")(
            to=array(to), from_=array(source), scale=array(scale), empty=array(empty))

    @classmethod
    def depthwise(cls, *, inside: Tensor, outside: Tensor, neighbours: Tensor, weight: Tensor) -> RowSum:
        """output[outside[s, c]] (+)= Σ_t weight[c, t] · input[inside[neighbours[s, t], c]]: a depthwise convolution.

        inside       (positions inside, channels) int32 rows of the input, -1 for a dead unit
        outside      (positions outside, channels) rows of the output, no two the same; those without an input become 0
        neighbours   (positions outside, taps) positions inside, -1 for none
        weight       (channels, taps)

        Raises ValueError for an index out of range, two outputs in one row, or tables that do not fit together.
        """
        for name, table in (("inside", inside), ("outside", outside), ("neighbours", neighbours)):
            require_table(name, table, 2)
        made = cls.__new__(cls)
        made.dtype = weight.dtype
        require_contiguous("weight", weight, weight.dtype)
        made._stage = getattr(compiled(), f"RowSum_{suffix(weight.dtype)}")(
            inside=array(inside), outside=array(outside), neighbours=array(neighbours), weight=array(weight),
            n_inside=len(inside), n_outside=len(outside), taps=neighbours.shape[1], channels=outside.shape[1])
        return made

    @property
    def entries(self) -> int:
        """Rows that are multiplied and added for one probe."""
        return self._stage.entries

    def run(self, input: Tensor, output: Tensor, n_probes: int, accumulate: bool = False,
            level: str | None = None) -> None:
        """Sum the first `n_probes` of each row (rows, width); the rest of a written row becomes zero.

        The blocks may be columns [a, b) of wider ones.  `level` as in `GatherGemm.run`.
        """
        _run_rows(self._stage, self.dtype, input, output, n_probes, accumulate, level)


class LowRank:
    """output[outside[g, i]] (+)= diagonal[g, i] · input[inside[g, i]] + Σ_r left[g, r, i] a_gr, where
    a_gr = Σ_j right[g, r, j] · input[inside[g, j]].

    inside        (groups, n) int32 rows of the input, -1 for a unit that is zero
    outside       (groups, n) int32 rows of the output, no two the same, -1 for a unit that is not wanted
    diagonal      (groups, n)
    left, right   (groups, rank, n), of rank 1 or 2

    Raises ValueError for an index out of range, two outputs in one row, or tables that do not fit together.

    >>> def i(*values): return torch.tensor([values], dtype=torch.int32)
    >>> mean = LowRank(inside=i(0, 1), outside=i(0, -1), diagonal=torch.ones(1, 2), left=-torch.ones(1, 1, 2),
    ...                right=torch.full((1, 1, 2), 0.5))
    >>> output = torch.zeros(1, 1)
    >>> mean.run(torch.tensor([[1.0], [5.0]]), output, 1)
    >>> output
    tensor([[-2.]])
    """

    def __init__(self, *, inside: Tensor, outside: Tensor, diagonal: Tensor, left: Tensor, right: Tensor) -> None:
        require_table("inside", inside, 2)
        require_table("outside", outside, 2)
        self.dtype = diagonal.dtype
        groups, size = inside.shape
        rank = left.shape[1] if left.ndim == 3 else 0
        for name, part, shape in (("outside", outside, (groups, size)), ("diagonal", diagonal, (groups, size)),
                                  ("left", left, (groups, rank, size)), ("right", right, (groups, rank, size))):
            if tuple(part.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(part.shape)}, beside inside {tuple(inside.shape)} it is "
                                 f"{shape}")
        numbers = {name: require_contiguous(name, part.contiguous(), self.dtype)
                   for name, part in (("diagonal", diagonal), ("left", left), ("right", right))}
        self._stage = getattr(compiled(), f"LowRank_{suffix(self.dtype)}")(
            inside=array(inside), outside=array(outside), **{name: array(part) for name, part in numbers.items()},
            n_groups=groups, size=size, rank=rank)

    @property
    def multiply_adds(self) -> int:
        """Of one probe."""
        return self._stage.multiply_adds

    def run(self, input: Tensor, output: Tensor, n_probes: int, accumulate: bool = False,
            level: str | None = None) -> None:
        """Write (or add to) the first `n_probes` of each output row; blocks and `level` as in `RowSum.run`."""
        _run_rows(self._stage, self.dtype, input, output, n_probes, accumulate, level)


def _run_rows(stage, dtype: torch.dtype, input: Tensor, output: Tensor, n_probes: int, accumulate: bool,
              level: str | None) -> None:
    rows_in, rows_out = require_columns("input", input, dtype), require_columns("output", output, dtype)
    if not 0 <= n_probes <= min(input.shape[1], output.shape[1]):
        raise ValueError(f"n_probes={n_probes}: the input holds {input.shape[1]} a row, the output "
                         f"{output.shape[1]}")
    if output.shape[1] == 0:
        return
    stage.run(input.data_ptr(), rows_in, max(input.stride(0), input.shape[1]), output.data_ptr(), rows_out,
              max(output.stride(0), output.shape[1]), output.shape[1], n_probes, accumulate, level)


def pitch_of(depth: int) -> int:
    """Numbers that a stage keeps for the weights of one tap: whole lines, but for small depths.

    >>> [pitch_of(depth) for depth in (3, 9, 64)]
    [3, 16, 64]
    """
    return depth if depth <= LINE // 2 else -(-depth // LINE) * LINE


def _packed(weight: Tensor, own: bool) -> Tensor:
    """A copy (outputs, taps, pitch) of (outputs, taps, depth), filled with zeros; or the weights, where they are like
    that and nobody else's.
    """
    depth = weight.shape[2]
    pitch = pitch_of(depth)
    if pitch == depth:
        return weight if own and weight.is_contiguous() else weight.clone(memory_format=torch.contiguous_format)
    packed = weight.new_zeros(*weight.shape[:2], pitch)
    packed[:, :, :depth] = weight
    return packed
