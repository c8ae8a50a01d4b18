"""Explanations made of random numbers that satisfy the sums, so that these tests depend on no network."""

from __future__ import annotations

import pytest
import torch

from specxai.spectral import Explanation


def make(shape=(3, 8, 6), k=6, **changes) -> Explanation:
    g = torch.Generator().manual_seed(1)
    n = torch.Size(shape).numel()
    x = torch.randn(n, generator=g)
    right = torch.linalg.qr(torch.randn(n, max(k, 1), generator=g)).Q.T[:k]
    projections = right.double() @ x.double()
    right, projections = right * projections.sign()[:, None].float(), projections.abs()
    s = torch.linspace(3, 0.5, k, dtype=torch.float64)
    psi = torch.randn(k, generator=g, dtype=torch.float64) + 1.5  # enough of one sign to survive the reduction
    alpha, gradient = psi * s * projections, (psi * s) @ right.double()
    values = {
        "layer": "features.3", "target": torch.tensor([0.0, 1.0]), "target_label": "output[1]", "S": s, "alpha": alpha,
        "psi": psi, "projections": projections, "residuals": torch.full((k,), 1e-7, dtype=torch.float64),
        "indices": torch.arange(k), "right_vectors": right.reshape(k, *shape), "left_vectors": torch.zeros(k, 4),
        "x": x.reshape(shape), "output": float(alpha.sum()) + 0.25 - 0.5 + 0.125, "bias": 0.25, "bypass": -0.5,
        "remainder": 0.125, "bias_contributions": {"features.0": 0.2, "fc": 0.05},
        "gradient": gradient.float().reshape(shape), "bypass_gradient": torch.zeros(shape), "exactness": 1e-7,
        "error": 1e-5, "method": "exact", "products": 12, "gates": "tangent", "backend": "reference", "seed": 0,
        "settings": {"bypass": True},
    }
    return Explanation(**{**values, **changes})


@pytest.fixture(scope="session")
def explanation():
    """`make`, as a fixture since test modules cannot import from a conftest."""
    return make
