"""The additive identity of `explain` at every layer of real architectures: the same output whichever layer is split."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai._vision import import_vision
from tolerances import RELATIVE


def autoencoder() -> nn.Module:
    widths = (64, 32, 8, 32, 64)
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def vision(name: str) -> nn.Module:
    model = getattr(import_vision("torchvision.models"), name)(weights=None)
    for module in model.modules():  # without shifts the biases of batch norm would be zero, and so untested
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.bias.data.normal_(0, 0.2)
    return model


CASES = {
    "autoencoder": (autoencoder, (1, 64), 1),
    "alexnet": (lambda: vision("alexnet"), (1, 3, 64, 64), 1),
    "vgg11_bn": (lambda: vision("vgg11_bn"), (1, 3, 32, 32), 1),
    "resnet18": (lambda: vision("resnet18"), (1, 3, 32, 32), 1),
    "densenet121": (lambda: vision("densenet121"), (1, 3, 32, 32), 20),
}


@pytest.mark.parametrize("name", CASES)
def test_same_output_at_every_layer(name):
    make, shape, step = CASES[name]
    model = make().eval()
    local = specxai.linearize(model, torch.randn(shape))
    around = 0
    for layer in local.layers[::step]:
        e = specxai.explain(local, layer=layer, target=3, rank=1, tol=0.9, method="krylov")
        assert e.output == pytest.approx(local.output[0, 3].item(), rel=1e-6)
        assert e.completeness <= RELATIVE[torch.float32], (layer, e.completeness)
        around += e.settings["bypass"]
    assert (around > 0) == (name in ("resnet18", "densenet121"))
