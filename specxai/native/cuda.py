"""The typed door to the CUDA kernels of csrc/cuda: checks are made here, without waiting for the device.

The compiled module is optional, knows no torch, and runs on the tensors' device and its current stream.  Tensors that
the kernels work in are torch's, so that its allocator serves them, also while a CUDA graph is captured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from specxai.native.checks import said, suffix

try:
    from specxai import _cuda as _module
except ImportError as error:
    _module = None
    _reason = f"the compiled module specxai._cuda cannot be imported ({error}); build it where nvcc is: make cuda"
else:
    _reason = ""

INDICES = (1 << 31) - 1  # of tables
MOST_TAPS = 1024  # of a site, which a block of threads keeps
MOST_SOLVED = 128  # columns of a triangular solve, whose rows a block keeps
MOST_SPAN_WIDTH = 32  # columns of a block beside a basis: with more, two matrix products are faster


def available() -> tuple[bool, str]:
    """Whether the compiled module is there, and if not, why; a device is another question."""
    return _module is not None, _reason


def runs_on(device: torch.device | str) -> bool:
    """Is it a device of the compiled module's kind?"""
    return _module is not None and torch.device(device).type == _module.device_type


def takes(X) -> bool:
    """Can the kernels for tall blocks have this one?"""
    return (isinstance(X, Tensor) and X.ndim == 2 and X.dtype in (torch.float32, torch.float64)
            and runs_on(X.device) and X.layout is torch.strided and not X.is_neg() and X.is_contiguous())


def compiled():
    """The module; RuntimeError where it is missing."""
    if _module is None:
        raise RuntimeError(_reason)
    return _module


@dataclass(frozen=True)
class Live:
    """The live ones of a mask or table, in order; entries behind the first `count` mean nothing.

    at       (n,) int32, where each lives
    rank     (n,) int32, the number of live ones before each live one, -1 for the others
    count    (1,) int32, on the device
    """

    at: Tensor
    rank: Tensor
    count: Tensor


@dataclass(frozen=True)
class Lists:
    """The live rows of each line of a table, in order; entries behind the last list mean nothing.

    begin         (lines + 1,) int32, entries before each line, and in all
    row, column   (entries,) int32
    """

    begin: Tensor
    row: Tensor
    column: Tensor


def compact(mask: Tensor) -> Live:
    """Where a bool mask is set, in order, without waiting for the device.

    Raises TypeError or ValueError with what was given instead.
    """
    _require("mask", mask, torch.bool)
    like = {"dtype": torch.int32, "device": mask.device}
    found = Live(*(torch.empty(mask.numel(), **like) for _ in range(2)), torch.empty(1, **like))
    _compact(mask, False, 1, at=found.at, rank=found.rank, count=found.count)
    return found


def live_lists(table: Tensor) -> Lists:
    """The rows of an int32 table (lines, width) that are not -1, line by line."""
    _require("table", table, torch.int32, 2)
    lines, width = table.shape
    if width == 0:
        return Lists(table.new_zeros(lines + 1), table.new_empty(0), table.new_empty(0))
    lists = Lists(table.new_empty(lines + 1), *(table.new_empty(table.numel()) for _ in range(2)))
    _compact(table, True, width, begin=lists.begin, row=lists.row, column=lists.column)
    return lists


def _compact(source: Tensor, table: bool, width: int, **wanted: Tensor) -> None:
    n = source.numel()
    if n > INDICES:
        raise ValueError(f"{n:,} entries, more than 32-bit indices reach")
    workspace = torch.empty(compiled().compact_workspace(n), dtype=torch.int32, device=source.device)
    compiled().compact(source=_array(source), table=table, n=n, width=width, workspace=_array(workspace),
                       wanted={name: _array(t) for name, t in wanted.items()}, **_place(source))


def map_rows(rows: Tensor, table: Tensor) -> Tensor:
    """table[rows] with -1 kept, in a new tensor; a row that the table does not have counts as -1."""
    _require("rows", rows, torch.int32)
    _require("table", table, torch.int32, 1, rows)
    mapped = torch.empty_like(rows)
    compiled().map_rows(rows=_array(rows), n_rows=rows.numel(), map=_array(table), n_map=len(table),
                        mapped=_array(mapped), **_place(rows))
    return mapped


def any_neighbour(cells: Tensor, neighbours: Tensor) -> Tensor:
    """Is a cell set at any neighbour?  cells (n, groups) bool, neighbours (m, taps) int32: (m, groups) bool.

    A neighbour beyond the cells counts as none.
    """
    _require("cells", cells, torch.bool, 2)
    _require("neighbours", neighbours, torch.int32, 2, cells)
    seen = torch.empty(len(neighbours), cells.shape[1], dtype=torch.bool, device=cells.device)
    compiled().any_neighbour(cells=_array(cells), n_inside=len(cells), groups=cells.shape[1],
                             neighbours=_array(neighbours), n_outside=len(neighbours), taps=neighbours.shape[1],
                             seen=_array(seen), **_place(cells))
    return seen


def tap_rows(inside: Tensor, neighbours: Tensor, groups: int) -> Tensor:
    """Each site's inputs over all taps: rows[s, g, t, c] = inside[neighbours[s, t], g, c], -1 without a neighbour.

    Args:
        inside: (positions, groups · depth) int32.
        neighbours: (sites, taps) int32 positions, -1 for none, as any counts that `inside` does not have.

    Returns (sites, groups, taps, depth) int32.
    """
    _require("inside", inside, torch.int32, 2)
    _require("neighbours", neighbours, torch.int32, 2, inside)
    depth = _depth(inside, groups)
    rows = inside.new_empty(len(neighbours), groups, neighbours.shape[1], depth)
    if rows.numel() > INDICES:
        raise ValueError(f"{rows.numel():,} entries, more than 32-bit indices reach")
    compiled().tap_rows(inside=_array(inside), n_inside=len(inside), groups=groups, depth=depth,
                        neighbours=_array(neighbours), n_outside=len(neighbours), taps=neighbours.shape[1],
                        rows=_array(rows), **_place(inside))
    return rows


class GatherGemm:
    """out[outside[s, o]] (+)= Σ_{t, c} weight[o, t, c] · block[inside[neighbours[s, t], c]], in full precision.

    Arguments as for `specxai.native.GatherGemm`, on one device.  That rows are written once and positions exist is
    checked when it is built, which waits for the device; `run` does not.

    Raises TypeError or ValueError with what was given instead.
    """

    def __init__(self, *, inside: Tensor, outside: Tensor, neighbours: Tensor, weight: Tensor,
                 groups: int = 1) -> None:
        _require("inside", inside, torch.int32, 2)
        for name, table in (("outside", outside), ("neighbours", neighbours)):
            _require(name, table, torch.int32, 2, inside)
        self.dtype = weight.dtype
        suffix(self.dtype)
        _require("weight", weight, self.dtype, 3, inside)
        (made, taps, depth), sites = weight.shape, len(outside)
        if groups < 1 or made % groups or made != outside.shape[1] or inside.shape[1] != groups * depth:
            raise ValueError(f"weight has shape {tuple(weight.shape)} in {groups} groups, but inside is "
                             f"{tuple(inside.shape)} and outside {tuple(outside.shape)}")
        if neighbours.shape != (sites, taps):
            raise ValueError(f"neighbours must be {(sites, taps)}, got {tuple(neighbours.shape)}")
        if taps > MOST_TAPS:
            raise ValueError(f"{taps} taps, more than the {MOST_TAPS} that a block keeps")
        if neighbours.numel() and int(neighbours.max()) >= len(inside):
            raise ValueError(f"neighbours names position {int(neighbours.max())} of {len(inside)}")
        live = outside[outside >= 0]
        if len(live.unique()) != len(live):
            raise ValueError("outside holds a row twice: two blocks of threads would write it")
        if weight.numel() > INDICES:
            raise ValueError(f"{weight.numel():,} weights, more than 32-bit indices reach")
        width = made // groups
        self._sizes = {"n_sites": sites, "groups": groups, "taps": taps, "depth": depth, "width": width}
        own = live_lists(inside.reshape(len(inside) * groups, depth))
        to = live_lists(outside.reshape(sites * groups, width))
        # [group, tap, input][output]: the weights of a live input lie next to each other.
        packed = weight.reshape(groups, width, taps * depth).transpose(1, 2).contiguous()
        self._tables = {"neighbours": neighbours, "in_begin": own.begin, "in_row": own.row, "in_column": own.column,
                        "out_begin": to.begin, "out_row": to.row, "out_column": to.column, "weight": packed}
        self._arrays = {name: _array(t) for name, t in self._tables.items()}
        self.read, self.written = (int(t.max()) + 1 if t.numel() else 0 for t in (inside, outside))

    @cached_property
    def bytes(self) -> int:
        """Of its tables and weights on the device."""
        return sum(t.numel() * t.itemsize for t in self._tables.values())

    def run(self, block: Tensor, out: Tensor, accumulate: bool = False) -> None:
        """Write (or add to) the outputs' rows of `out` (rows, k) from `block` (rows, k), probes contiguous.

        The two may be one block where no row is both read and written.
        """
        for name, t, least in (("block", block, self.read), ("out", out, self.written)):
            _require(name, t, self.dtype, 2, self._tables["weight"], whole=False)
            if len(t) < least or (t.shape[1] > 1 and t.stride(1) != 1):
                raise ValueError(f"{name} must have at least {least} rows of contiguous probes, got {said(t)}")
        if block.shape[1] != out.shape[1]:
            raise ValueError(f"block holds {block.shape[1]} probes a row, out {out.shape[1]}")
        getattr(compiled(), f"gather_gemm_{suffix(self.dtype)}")(
            **self._sizes, **self._arrays, input=block.data_ptr(), in_stride=block.stride(0), output=out.data_ptr(),
            out_stride=out.stride(0), probes=block.shape[1], accumulate=accumulate, **_place(block))


def gram(X: Tensor, Y: Tensor | None = None) -> Tensor:
    """Xᵀ Y (Xᵀ X without Y) for X (m, b), Y (m, c) of one dtype, contiguous: (b, c) float64.

    Products and sums are in float64; equal arguments give equal bits.
    """
    Y = X if Y is None else Y
    kernel = _tall("gram", X)
    _require("Y", Y, X.dtype, 2, X)
    if len(Y) != len(X):
        raise ValueError(f"X is {tuple(X.shape)} but Y is {tuple(Y.shape)}: one number of rows is needed")
    like = {"dtype": torch.float64, "device": X.device}
    G = torch.empty(X.shape[1], Y.shape[1], **like)
    room = torch.empty(compiled().gram_workspace(X.shape[1], Y.shape[1], len(X)), **like)
    kernel(left=_array(X), n_left=X.shape[1], right=_array(Y), n_right=Y.shape[1], n_rows=len(X), output=_array(G),
           workspace=_array(room), **_place(X))
    return G


def solve_triangular(X: Tensor, R: Tensor, out: Tensor | None = None) -> Tensor:
    """X R⁻¹ for X (m, b) contiguous and R (b, b) float64 upper triangular, into `out`, which may be X."""
    kernel = _tall("solve_triangular", X)
    width = X.shape[1]
    _require("R", R, torch.float64, 2, X)
    if R.shape != (width, width):
        raise ValueError(f"R must be {(width, width)} for X {tuple(X.shape)}, got {tuple(R.shape)}")
    if width > MOST_SOLVED:
        raise ValueError(f"X has {width} columns, more than the {MOST_SOLVED} that a thread's row takes; "
                         "use torch.linalg.solve_triangular")
    out = _result(X, out)
    kernel(block=_array(X), R=_array(R), n_rows=len(X), width=width, output=_array(out), **_place(X))
    return out


def coefficients(basis: Tensor, X: Tensor) -> Tensor:
    """`basis` X for a basis (q, m) of row vectors and X (m, b), contiguous, of one dtype: (q, b) float64."""
    return _span(basis, X, None, None, True)[1]


def subtract(basis: Tensor, H: Tensor, X: Tensor, out: Tensor | None = None) -> Tensor:
    """X − `basis`ᵀ H for H (q, b) float64, the rest as in `coefficients`; into `out`, which may be X."""
    return _span(basis, X, H, _result(X, out), False)[0]


def reorthogonalise(basis: Tensor, H: Tensor, X: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Z = X − `basis`ᵀ H and `basis` Z, in one reading of the basis: (m, b), and (q, b) float64.

    Classical Gram-Schmidt, twice, so reads a basis three times: `coefficients`, this, `subtract`.
    """
    return _span(basis, X, H, _result(X, out), True)


def _span(basis: Tensor, X: Tensor, H: Tensor | None, out: Tensor | None, projects: bool):
    kernel = _tall("span", X)
    _require("basis", basis, X.dtype, 2, X)
    (q, m), b = basis.shape, X.shape[1]
    if len(X) != m:
        raise ValueError(f"basis vectors have {m} numbers, X has {len(X)} rows")
    if b > MOST_SPAN_WIDTH:
        raise ValueError(f"X has {b} columns, more than {MOST_SPAN_WIDTH}: two matrix products are faster")
    if H is not None:
        _require("H", H, torch.float64, 2, X)
        if H.shape != (q, b):
            raise ValueError(f"H must be {(q, b)}, got {tuple(H.shape)}")
    like = {"dtype": torch.float64, "device": X.device}
    left = torch.empty(q, b, **like) if projects else None
    room = torch.empty(compiled().span_workspace(q, b, m), **like) if projects else None
    kernel(basis=_array(basis), n_basis=q, before=_maybe(H), block=_array(X), width=b, n=m, output=_maybe(out),
           coefficients=_maybe(left), workspace=_maybe(room), **_place(X))
    return out, left


def _tall(name: str, X: Tensor):
    if not isinstance(X, Tensor):
        raise TypeError(f"X must be a torch.Tensor, got {said(X)}")
    kernel = f"{name}_{suffix(X.dtype)}"
    _require("X", X, X.dtype, 2)
    return getattr(compiled(), kernel)


def _result(X: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return torch.empty_like(X)
    _require("out", out, X.dtype, 2, X)
    if out.shape != X.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, X has {tuple(X.shape)}")
    return out


def _depth(inside: Tensor, groups: int) -> int:
    if groups < 1 or inside.shape[1] % groups:
        raise ValueError(f"{inside.shape[1]} columns of inside do not divide into {groups} groups")
    return inside.shape[1] // groups


def _require(name: str, t: Tensor, dtype: torch.dtype, ndim: int | None = None, beside: Tensor | None = None,
             whole: bool = True) -> None:
    """A tensor of this dtype, in one piece if `whole`, on the device of `beside`, or any that the kernels run on."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {said(t)}")
    if t.dtype is not dtype or t.layout is not torch.strided or t.is_neg():
        raise TypeError(f"{name} must be {dtype}, got {said(t)}")
    kind = compiled().device_type
    if t.device.type != kind or (beside is not None and t.device != beside.device):
        raise ValueError(f"{name} must be on {beside.device if beside is not None else f'a {kind} device'}, "
                         f"got {said(t)}")
    if ndim is not None and t.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {tuple(t.shape)}")
    if whole and not t.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got {said(t)}; call .contiguous()")


def _array(t: Tensor) -> tuple[int, int]:
    """(address, length), null for none; the caller keeps the tensor until the kernel is launched."""
    return t.data_ptr() or 1, t.numel()


def _maybe(t: Tensor | None) -> tuple[int, int] | None:
    return None if t is None else _array(t)


def _place(t: Tensor) -> dict[str, int]:
    if t.device.type != "cuda":
        return {"device": 0, "stream": 0}
    return {"device": t.device.index, "stream": torch.cuda.current_stream(t.device).cuda_stream}
