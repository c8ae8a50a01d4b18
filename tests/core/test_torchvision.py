"""Exactness, products and the absence of generic nodes on torchvision's architectures, in both precisions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai import native
from specxai._vision import import_vision

# Images as small as the architecture allows: the map has the same structure.
MODELS = {"alexnet": 64, "vgg11_bn": 32, "resnet18": 32, "resnet50": 32, "densenet121": 32, "googlenet": 32,
          "squeezenet1_1": 32, "shufflenet_v2_x1_0": 32, "mnasnet1_0": 32, "regnet_y_400mf": 32, "regnet_x_400mf": 32}
# A hundred layers deep: more roundings than the shared table allows for.
BOUND = {torch.float64: 1e-12, torch.float32: 1e-5}


def randomised(name: str) -> nn.Module:
    """Random weights, with batch statistics and biases that are not the zeros and ones of a fresh model."""
    settings = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = getattr(import_vision("torchvision.models"), name)(weights=None, **settings)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.7, 1.4)
            nn.init.normal_(module.bias, 0.1, 0.2)
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.normal_(module.bias, 0.02, 0.02)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_affine_map(name):
    model = randomised(name)
    for dtype in (torch.float32, torch.float64):
        model, x = model.to(dtype), torch.randn(1, 3, MODELS[name], MODELS[name], dtype=dtype)
        captured = specxai.capture(model, x, verify=False)  # what `verify` compares is compared below
        local = captured.linearize(x, backend="reference")
        assert local.generic_nodes == []
        J, v, u = local.jacobian, torch.randn_like(x), torch.randn_like(local.output)
        assert local.output.abs().max() > 0
        assert local.exactness <= BOUND[dtype], local.exactness
        output, Jv = torch.func.jvp(model, (x,), (v,))
        Ju = torch.func.vjp(model, x)[1](u)[0]
        assert (local.output - output).norm() <= BOUND[dtype] * output.norm()
        assert Jv.norm() > 0
        assert (J.matvec(v.flatten()) - Jv.flatten()).norm() <= BOUND[dtype] * Jv.norm()
        assert (J.rmatvec(u.flatten()) - Ju.flatten()).norm() <= BOUND[dtype] * Ju.norm()
        if native.available()[0]:
            compiled = captured.linearize(x, backend="native").jacobian
            assert (compiled.matvec(v.flatten()) - Jv.flatten()).norm() <= BOUND[dtype] * Jv.norm()
            assert (compiled.rmatvec(u.flatten()) - Ju.flatten()).norm() <= BOUND[dtype] * Ju.norm()
        left = J.matvec(v.flatten()).double() @ u.flatten().double()
        right = v.flatten().double() @ J.rmatvec(u.flatten()).double()
        assert abs(left - right) <= BOUND[dtype] * Jv.norm() * u.norm()
        total = sum(local.bias_contributions(0).values())
        assert total == pytest.approx(local.bias[0, 0].item(), abs=float(BOUND[dtype] * local.output.norm()))
