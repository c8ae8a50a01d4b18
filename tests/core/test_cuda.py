"""The affine map on a GPU is the CPU's."""

from __future__ import annotations

import pytest
import torch

import specxai
from nets import NETS, build

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", NETS)
def test_same_map(name, backend):
    model, x = build(name)
    wanted = specxai.linearize(model, x)
    layer = wanted.layers[len(wanted.layers) // 2]
    e = specxai.explain(wanted, layer=layer, target=0, rank=None)
    got = specxai.linearize(model.cuda(), x.cuda(), backend=backend)
    assert got.backend == ("reference" if backend == "auto" else backend)
    assert torch.allclose(got.jacobian.to_dense().cpu(), wanted.jacobian.to_dense(), rtol=1e-11, atol=1e-13)
    assert got.exactness <= 1e-12
    assert got.first_flip(torch.ones_like(x)) == pytest.approx(wanted.first_flip(torch.ones_like(x)))
    again = specxai.explain(got, layer=layer, target=0, rank=None)
    assert torch.allclose(again.alpha, e.alpha, atol=1e-11)
    assert again.completeness <= 1e-12
