"""Feature-wise contraction of singular vectors with the input, paper eq. (23)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specxai._blocks import as_integer

__all__ = ["contract", "normalise_dims"]

_CHUNK = 1 << 22  # products held at once, in elements: bounds the float64 temporaries of an exact run to 32 MiB


def normalise_dims(dim: int | Sequence[int], shape: torch.Size) -> tuple[int, ...]:
    """`dim` as a sorted tuple of non-negative axes of `shape`; raises if one is out of range or named twice."""
    dims = (dim,) if isinstance(dim, bool) or as_integer(dim) is not None else tuple(dim)
    for d in dims:
        if as_integer(d) is None or not -len(shape) <= d < len(shape):
            raise ValueError(f"dim={dim!r} does not name axes of the input without its batch axis, of shape "
                             f"{tuple(shape)}: give integers from {-len(shape)} to {len(shape) - 1}")
    dims = tuple(sorted(int(d) % len(shape) for d in dims))
    if len(set(dims)) < len(dims):
        raise ValueError(f"dim={dim!r} names an axis twice; the input without its batch axis has shape {tuple(shape)}")
    return dims


def contract(vectors: torch.Tensor, x: torch.Tensor, dim: int | Sequence[int] = 0) -> torch.Tensor:
    """c^k = Σ_dim φ^k ∘ x, eq. (23).

    vectors (k, *shape), x (*shape), `dim` axes of `shape` -> (k, *rest), in the dtype of `vectors`, accumulated in
    float64.  An empty tuple contracts nothing, all axes give φ_k·x.

    >>> contract(torch.ones(2, 3, 4, 4), torch.ones(3, 4, 4)).shape
    torch.Size([2, 4, 4])
    """
    dims = normalise_dims(dim, x.shape)
    rest = [n for d, n in enumerate(x.shape) if d not in dims]
    out = vectors.new_empty([len(vectors), *rest])
    x64, step = x.double(), max(1, _CHUNK // max(1, x.numel()))
    for start in range(0, len(vectors), step):
        product = vectors[start:start + step].double() * x64
        # torch reads an empty dim as "all axes", the opposite of what is meant here.
        out[start:start + step] = product.sum([d + 1 for d in dims]) if dims else product
    return out


def project(vectors: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(k,) float64 dot products of each of `vectors` (k, *shape) with `x` (*shape), in bounded memory."""
    flat, x64 = vectors.reshape(len(vectors), x.numel()), x.reshape(-1).double()
    step = max(1, _CHUNK // max(1, x.numel()))
    parts = [flat[start:start + step].double() @ x64 for start in range(0, len(flat), step)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device="cpu")


def combine(weights: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Σ_k weights_k · vectors_k, (k,) and (k, *shape) -> (*shape) float64, in bounded memory."""
    shape = vectors.shape[1:]
    out = torch.zeros(shape.numel(), dtype=torch.float64, device="cpu")
    step = max(1, _CHUNK // max(1, shape.numel()))
    for start in range(0, len(vectors), step):
        block = vectors[start:start + step]
        out += weights[start:start + step].double() @ block.reshape(len(block), -1).double()
    return out.reshape(shape)
