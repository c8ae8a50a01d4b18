"""What a backend makes of a layer is held against the reference's product with x."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import specxai
from specxai import native
from specxai.errors import SpecXAIError

needs_native = pytest.mark.skipif(not native.available()[0], reason="the compiled module is not built")


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
                         nn.Linear(8 * 64, 40), nn.ReLU(), nn.Linear(40, 4)).eval()


FAULTS = {
    "scaled": lambda weight: 1.3 * weight,
    "wrong sign": lambda weight: -weight,
    "turned": lambda weight: weight.flip(-1),
    "another output's": lambda weight: weight.roll(1, 0),
}


@needs_native
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("rank", "backend"), [(5, "auto"), (None, "native")])
def test_a_wrong_weight_of_the_fast_path_alone_is_seen(fault, rank, backend):
    local = specxai.linearize(net(), torch.randn(1, 3, 12, 12), backend=backend)
    right = specxai.explain(local, layer="3", rank=rank)
    assert right.completeness < 1e-4
    local.decompositions.clear()
    step, node = next((step, node) for step, node in local.graph.nodes.items() if node.convolution)
    local.graph.nodes[step] = replace(
        node, convolution=replace(node.convolution, weight=FAULTS[fault](node.convolution.weight)))
    local._backend._planner._structures.clear()
    with pytest.raises(SpecXAIError, match="products at layer '3' are not those of the reference"):
        specxai.explain(local, layer="3", rank=rank)
