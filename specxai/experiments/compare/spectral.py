"""Our maps (h, w) of one explanation, beside the rivals': by singular value, by reduced contribution, and all of it."""

from __future__ import annotations

import torch
from torch import Tensor

from specxai.spectral.contraction import combine, contract

READINGS = ("strongest", "top reduced", "top 3 reduced", "all")


def spectral_maps(e) -> dict[str, Tensor]:
    """Readings of an Explanation of an image (C, h, w) as maps (h, w), float64.

    strongest      c⁰ of the largest singular value (23), which adds up to φ·x ≥ 0 and knows no class
    top reduced    ψλc of the survivor of the reduction (21) with the largest share
    top 3 reduced  the sum of the three largest survivors' ψλc
    all            Σ_k ψ_k λ_k c^k: of all components, gradient × input less what goes round the layer

    The last three add up to the α of their components.
    """
    dominant = e.top(3, by="reduced")
    groups = {"top reduced": dominant[:1], "top 3 reduced": dominant, "all": list(range(len(e)))}
    maps = {"strongest": leading_maps(e, 1, "lambda").sum(0)}
    maps |= {name: total(e, group) for name, group in groups.items()}
    return {name: maps[name] for name in READINGS}


def total(e, positions: list[int]) -> Tensor:
    """(h, w) Σ ψ_k λ_k c^k of the components at `positions`; zeros for none."""
    return attributed(e, positions).sum(0)


def attributed(e, positions: list[int]) -> Tensor:
    """(C, h, w) Σ ψ_k λ_k φ_k ∘ x of the components at `positions`."""
    rows = torch.tensor(positions, dtype=torch.long)
    return combine((e.psi * e.S)[rows], e.right_vectors[rows]) * e.x.double()


def leading_maps(e, count: int, by: str) -> Tensor:
    """(k, h, w) float64, c^k (23) of the `count` first components by "lambda" or "reduced"; k may be smaller."""
    positions = e.top(count, by=by)
    return contract(e.right_vectors[positions], e.x, 0).double()
