"""One dense linear stage of a gated chain, W' = diag(scale) W[rows, cols].

rows and cols list the live output and input units: a dead unit is a row that does not exist.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.native.module import compiled

_KERNELS = {torch.float32: "gated_linear_f32", torch.float64: "gated_linear_f64"}


def gated_linear(
    W: Tensor,
    Z: Tensor,
    *,
    rows: Tensor | None = None,
    cols: Tensor | None = None,
    scale: Tensor | None = None,
    transpose: bool = False,
    level: str | None = None,
) -> Tensor:
    """W' Z, or W'ᵀ Z with `transpose`, for W' = diag(scale) W[rows, cols].

    The same `rows`, `cols` and `scale` give a map and its adjoint.  Equal arguments give equal bits, on any number of
    threads.

    Args:
        W: (m, n) weights, float32 or float64, contiguous, on the CPU.
        Z: (n_live_in, k) block of k probes, one row per live input; (n_live_out, k) with `transpose`.
        rows: (n_live_out,) int64 live outputs, each in [0, m); all if None.  Sorted is fastest.
        cols: (n_live_in,) int64 live inputs, each in [0, n); all if None.
        scale: (n_live_out,) gate of each live output; ones if None.
        level: "scalar", "avx2" or "avx512" instead of `simd_level()`, for tests and benchmarks.

    Returns:
        (n_live_out, k), or (n_live_in, k) with `transpose`; dtype of W.

    Raises:
        RuntimeError: the compiled module is missing, or the CPU lacks the instruction set asked for.
        TypeError, ValueError, IndexError: an argument that the kernel cannot take, with the values found.

    >>> W = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> gated_linear(W, torch.tensor([[10.0]]), rows=torch.tensor([0, 1]), cols=torch.tensor([1])).tolist()
    [[20.0], [40.0]]
    """
    module = compiled()
    _check_floats("W", W, 2, W)
    _check_floats("Z", Z, 2, W)
    m, n = W.shape
    n_rows = _check_indices("rows", rows, m)
    n_cols = _check_indices("cols", cols, n)
    if scale is not None:
        _check_floats("scale", scale, 1, W)
        if len(scale) != n_rows:
            raise ValueError(
                f"scale has {len(scale)} gates but there are {n_rows} live outputs; it is indexed like rows"
            )
    n_in, n_out = (n_rows, n_cols) if transpose else (n_cols, n_rows)
    n_live, k = Z.shape
    if n_live != n_in:
        raise ValueError(
            f"Z has {n_live} rows but the {'adjoint' if transpose else 'map'} reads {n_in} live units"
            + ("; was transpose meant?" if n_live == n_out else "; Z holds one row per live unit, not per unit of W")
        )
    Y = W.new_empty((n_out, k))
    if 0 in (n_in, n_out, k):  # the others may be any number
        return Y.zero_()
    getattr(module, _KERNELS[W.dtype])(
        weight=W.data_ptr(),
        weight_rows=m,
        weight_cols=n,
        rows=_pointer(rows),
        n_rows=n_rows,
        cols=_pointer(cols),
        n_cols=n_cols,
        scale=0 if scale is None else scale.data_ptr(),
        input=Z.data_ptr(),
        output=Y.data_ptr(),
        n_probes=k,
        transpose=transpose,
        level=level,
    )
    return Y


def _pointer(index: Tensor | None) -> int:
    """An index's address; 1 stands for an empty index, whose null pointer would mean `all`."""
    return 0 if index is None else index.data_ptr() or 1


def _check_tensor(name: str, t: Tensor, dims: int) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.device.type != "cpu" or t.layout is not torch.strided:
        raise ValueError(f"{name} must be a dense CPU tensor, got device {t.device} and layout {t.layout}")
    if t.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimension(s), got shape {tuple(t.shape)}")
    if not t.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, got shape {tuple(t.shape)} with strides {t.stride()}; "
            "call .contiguous() (or pass transpose=True instead of a transposed W)"
        )
    if t.is_conj() or t.is_neg():
        raise ValueError(f"{name} is a lazy conjugate or negative view; call .resolve_conj().resolve_neg()")


def _check_floats(name: str, t: Tensor, dims: int, W: Tensor) -> None:
    _check_tensor(name, t, dims)
    if t.dtype not in _KERNELS:
        raise TypeError(f"{name} must be float32 or float64, got {t.dtype}")
    if t.dtype is not W.dtype:
        raise TypeError(f"{name} is {t.dtype} but W is {W.dtype}; convert one of them")
    if t.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires grad, which this kernel does not record; detach it or use torch.no_grad()")


def _check_indices(name: str, index: Tensor | None, size: int) -> int:
    """The number of live units, all `size` of them for None."""
    if index is None:
        return size
    _check_tensor(name, index, 1)
    if index.dtype is not torch.int64:
        raise TypeError(
            f"{name} must be int64, got {index.dtype}"
            + ("; use mask.nonzero()[:, 0]" if index.dtype is torch.bool else "")
        )
    if len(index):
        low, high = (int(v) for v in torch.aminmax(index))
        if low < 0 or high >= size:
            raise IndexError(
                f"{name} spans {low} to {high}, but W of that side has units 0 to {size - 1}; "
                "were the indices of another layer passed?"
            )
    return len(index)
