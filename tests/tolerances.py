"""The one tolerance table: relative to the size of what is compared, by dtype.  Never relaxed for a machine."""

from __future__ import annotations

import torch
from torch import Tensor

# A few hundred roundings of a well-conditioned sum.
RELATIVE = {torch.float32: 2e-5, torch.float64: 5e-14}


def assert_close(got: Tensor, want: Tensor, factor: float = 1.0) -> None:
    """max |got - want| <= factor · RELATIVE[got.dtype] · max |want|, with no NaN; `want` may have more precision."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if got.numel() == 0:
        return
    error = (got.to(want.dtype) - want).abs().max().item()
    bound = factor * RELATIVE[got.dtype] * max(want.abs().max().item(), torch.finfo(got.dtype).tiny)
    assert error <= bound, f"error {error:.3e} above {bound:.3e} for {got.dtype}"
