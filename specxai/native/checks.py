"""What may reach a kernel: tensors whose memory is what it seems to be.  Each check says what it got."""

from __future__ import annotations

import torch
from torch import Tensor

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def suffix(dtype: torch.dtype) -> str:
    """How the kernels of a dtype are called; TypeError where there are none."""
    if dtype not in _SUFFIX:
        raise TypeError(f"the compiled kernels take float32 and float64, not {dtype}")
    return _SUFFIX[dtype]


def array(t: Tensor | None) -> tuple[int, int]:
    """(address, length); an empty array needs an address too, as null stands for none."""
    return (0, 0) if t is None else (t.data_ptr() or 1, t.numel())


def said(t) -> str:
    """What was given instead."""
    if not isinstance(t, Tensor):
        return type(t).__name__
    if t.layout is not torch.strided:
        return f"{t.dtype} {tuple(t.shape)} of layout {t.layout}"
    lazy = ", a lazy negative view (call .resolve_neg())" if t.is_neg() else ""
    return f"{t.dtype} {tuple(t.shape)} on {t.device}, strides {t.stride()}{lazy}"


def is_plain(t, dtype: torch.dtype) -> bool:
    """Is it a tensor of this dtype on the CPU whose memory holds its numbers as they are?"""
    return (isinstance(t, Tensor) and t.dtype is dtype and t.device.type == "cpu" and t.layout is torch.strided
            and not t.is_neg())


def is_columns(t: Tensor) -> bool:
    """Do a block's rows (rows, width) lie one after the other, each without gaps?"""
    # An axis of one element has any stride, which `contiguous` leaves as it is.
    return t.ndim == 2 and (t.shape[1] <= 1 or t.stride(1) == 1) and (t.shape[0] <= 1 or t.stride(0) >= t.shape[1])


def takes(X) -> bool:
    """Can the kernels have this block?"""
    return isinstance(X, Tensor) and X.dtype in _SUFFIX and is_plain(X, X.dtype) and X.is_contiguous()


def require_plain(name: str, t: Tensor, dtype: torch.dtype, ndim: int | None = None, what: str = "") -> Tensor:
    """The tensor, of this dtype, on the CPU and of `ndim` axes where that is given; in one piece or not."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {said(t)}")
    if not is_plain(t, dtype):
        raise ValueError(f"{name} must be {what or f'contiguous {dtype}'} on the CPU, got {said(t)}")
    if ndim is not None and t.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {tuple(t.shape)}")
    return t


def require_contiguous(name: str, t: Tensor, dtype: torch.dtype, ndim: int | None = None, what: str = "") -> Tensor:
    """The same in one piece."""
    require_plain(name, t, dtype, ndim, what)
    if not t.is_contiguous():
        raise ValueError(f"{name} must be {what or f'contiguous {dtype}'} on the CPU, got {said(t)}; "
                         "call .contiguous()")
    return t


def require_table(name: str, t: Tensor, ndim: int) -> Tensor:
    """Indices that a stage keeps."""
    what = f"a contiguous int32 {'vector' if ndim == 1 else 'table'}"
    if require_contiguous(name, t, torch.int32, what=what).ndim != ndim:
        raise ValueError(f"{name} must be {what} on the CPU, got {said(t)}")
    return t


def require_columns(name: str, t: Tensor, dtype: torch.dtype) -> int:
    """The number of rows of a block that may be part of a wider one."""
    what = f"a block (rows, probes) of {dtype}, row by row,"
    if not is_columns(require_plain(name, t, dtype, what=what)):
        raise ValueError(f"{name} must be {what} on the CPU, got {said(t)}")
    return t.shape[0]


def require_block(name: str, t: Tensor, dtype: torch.dtype) -> int:
    """The number of rows of a block."""
    if require_contiguous(name, t, dtype).ndim != 2:
        raise ValueError(f"{name} must be a block (rows, probes), got shape {tuple(t.shape)}")
    return t.shape[0]


def require_matrices(**blocks: Tensor) -> None:
    """All are matrices that the kernels take, of one dtype."""
    for name, block in blocks.items():
        if not takes(block) or block.ndim != 2:
            raise ValueError(f"{name} must be a contiguous matrix of float32 or float64 on the CPU, got {said(block)}")
    if len({block.dtype for block in blocks.values()}) > 1:
        raise ValueError("one dtype is needed: " + ", ".join(f"{name} is {b.dtype}" for name, b in blocks.items()))
