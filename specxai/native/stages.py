"""Stages of a plan over live rows: built and checked once, run on many blocks of probes.

A block is a matrix [row][probe], probes contiguous, `stride` of them, a multiple of 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.native.module import compiled

PROBE_UNIT = 16  # the stride of a block is a multiple of it
PANEL = 16  # outputs whose weights lie side by side
_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def pack(weight: Tensor) -> Tensor:
    """Weights (outputs, taps, depth) in panels (outputs / 16, taps, depth, 16), the last one filled with zeros."""
    outputs, taps, depth = weight.shape
    panels = -(-outputs // PANEL)
    if outputs % PANEL:
        weight = torch.cat([weight, weight.new_zeros(panels * PANEL - outputs, taps, depth)])
    return weight.reshape(panels, PANEL, taps, depth).permute(0, 2, 3, 1).contiguous()


class GatherGemm:
    """output[out_row[o]] (+)= Σ_e w(tap_e, in_column[e], out_column[o]) · input[in_row[e]], site by site.

    Every index array is int32.

    run_begin   (sites + 1,) runs of each site
    run_entry, run_count, run_tap   (runs,) a run is `count` entries from `entry` on, all under one tap of the kernel
    in_row, in_column    (entries,) a live input's row, and its place among the weights' depth
    out_begin   (sites + 1,) outputs of each site
    out_row, out_column  (outputs,) a live output's row, no two the same, and its place among the weights' outputs
    weight      what `pack` made of (outputs, taps, depth)
    width       outputs before packing

    Raises ValueError for an index out of range, two outputs in one row, or arrays that do not fit together.

    >>> def i(*values): return torch.tensor(values, dtype=torch.int32)
    >>> stage = GatherGemm(run_begin=i(0, 1), run_entry=i(0), run_count=i(2), run_tap=i(0), in_row=i(1, 0),
    ...                    in_column=i(0, 1), out_begin=i(0, 1), out_row=i(0), out_column=i(0),
    ...                    weight=pack(torch.tensor([[[3.0, 5.0]]])), width=1)
    >>> output = torch.empty(1, 16)
    >>> stage.run(torch.tensor([[1.0], [2.0]]).expand(2, 16).contiguous(), output)
    >>> float(output[0, 0])
    11.0
    """

    def __init__(self, *, run_begin: Tensor, run_entry: Tensor, run_count: Tensor, run_tap: Tensor, in_row: Tensor,
                 in_column: Tensor, out_begin: Tensor, out_row: Tensor, out_column: Tensor, weight: Tensor,
                 width: int) -> None:
        arrays = {"run_begin": run_begin, "run_entry": run_entry, "run_count": run_count, "run_tap": run_tap,
                  "in_row": in_row, "in_column": in_column, "out_begin": out_begin, "out_row": out_row,
                  "out_column": out_column}
        self.dtype = weight.dtype
        panels, taps, depth, _ = weight.shape
        if panels != -(-width // PANEL) or weight.shape[3] != PANEL:
            raise ValueError(f"weight is packed as {tuple(weight.shape)}, which does not hold {width} outputs")
        self._kept = (*_indices(arrays), _floats("weight", weight, self.dtype))
        self._stage = getattr(compiled(), f"GatherGemm_{_suffix(self.dtype)}")(
            **{name: _array(t) for name, t in arrays.items()}, weight=_array(weight), taps=taps, depth=depth,
            width=width)

    @property
    def multiply_adds(self) -> int:
        """Of one probe."""
        return self._stage.multiply_adds

    def run(self, input: Tensor, output: Tensor, accumulate: bool = False, level: str | None = None,
            bf16: bool = False) -> None:
        """Write (or add to) the outputs' rows of `output` (rows, stride) from `input` (rows, stride).

        The two may be one block where no row is both read and written.  `level` as in `gated_linear`.  `bf16` rounds
        every factor to bfloat16 and sums in float32: twice the rate, errors of 2⁻⁸; RuntimeError without `has_bf16()`.
        """
        rows_in, rows_out = _block("input", input, self.dtype), _block("output", output, self.dtype)
        stride = input.shape[1]
        if output.shape[1] != stride:
            raise ValueError(f"input holds {stride} probes a row, output {output.shape[1]}")
        if bf16:
            self._stage.run_bf16(input.data_ptr(), rows_in, output.data_ptr(), rows_out, stride, accumulate)
        else:
            self._stage.run(input.data_ptr(), rows_in, output.data_ptr(), rows_out, stride, accumulate, level)


class RowSum:
    """output[out_row[o]] (+)= Σ_e scale[e] · input[in_row[e]], e from begin[o] to begin[o + 1].

    begin     (outputs + 1,) int32
    in_row    (entries,) int32
    scale     (entries,) or None for ones
    out_row   (outputs,) int32, no two the same
    dtype     of the blocks

    >>> def i(*values): return torch.tensor(values, dtype=torch.int32)
    >>> total = torch.zeros(1, 2)
    >>> RowSum(begin=i(0, 2), in_row=i(0, 1), out_row=i(0), dtype=torch.float32).run(torch.eye(2), total, 2)
    >>> total
    tensor([[1., 1.]])
    """

    def __init__(self, *, begin: Tensor, in_row: Tensor, out_row: Tensor, dtype: torch.dtype,
                 scale: Tensor | None = None) -> None:
        arrays = {"begin": begin, "in_row": in_row, "out_row": out_row}
        self.dtype = dtype
        self._kept = (*_indices(arrays), None if scale is None else _floats("scale", scale, dtype))
        self._stage = getattr(compiled(), f"RowSum_{_suffix(dtype)}")(
            **{name: _array(t) for name, t in arrays.items()}, scale=_array(scale))

    def run(self, input: Tensor, output: Tensor, n_probes: int, accumulate: bool = False) -> None:
        """Sum the first `n_probes` of each row (rows, stride); the rest of an output row becomes zero."""
        rows_in, rows_out = _block("input", input, self.dtype), _block("output", output, self.dtype)
        self._stage.run(input.data_ptr(), rows_in, input.shape[1], output.data_ptr(), rows_out, output.shape[1],
                        n_probes, accumulate)


def _suffix(dtype: torch.dtype) -> str:
    if dtype not in _SUFFIX:
        raise TypeError(f"the compiled kernels take float32 and float64, not {dtype}")
    return _SUFFIX[dtype]


def _array(t: Tensor | None) -> tuple[int, int]:
    """(address, length); an empty array needs an address too, as null stands for none."""
    return (0, 0) if t is None else (t.data_ptr() or 1, t.numel())


def _indices(arrays: dict[str, Tensor]) -> tuple[Tensor, ...]:
    for name, t in arrays.items():
        if t.dtype is not torch.int32 or t.ndim != 1 or not t.is_contiguous() or t.device.type != "cpu":
            raise ValueError(f"{name} must be a contiguous int32 vector on the CPU, got {t.dtype} {tuple(t.shape)} on "
                             f"{t.device}")
    return tuple(arrays.values())


def _floats(name: str, t: Tensor, dtype: torch.dtype) -> Tensor:
    if t.dtype is not dtype or not t.is_contiguous() or t.device.type != "cpu":
        raise ValueError(f"{name} must be contiguous {dtype} on the CPU, got {t.dtype} on {t.device}")
    return t


def _block(name: str, t: Tensor, dtype: torch.dtype) -> int:
    """The number of rows of a block."""
    _floats(name, t, dtype)
    if t.ndim != 2:
        raise ValueError(f"{name} must be a block (rows, probes), got shape {tuple(t.shape)}")
    return t.shape[0]
