"""Classifiers rewritten so that Captum's LRP is right for them: batch norm in the convolutions, additions as modules.

The ε-rule is gradient × input on a network of ReLUs, as R/z is then what a gradient carries: see the tests.  Chains of
convolutions and ReLUs are given the usual composite, γ for convolutions and ε for the rest; EfficientNet's bottlenecks
are linear, of both signs, where the γ-rule divides by what may be zero.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

GAMMA = 0.25


def canonised(net: nn.Module) -> nn.Module:
    """The same function, to rounding, of layers that `with_rules` has LRP rules for.

    Takes chains named `features` and `classifier` as torchvision's VGG and AlexNet, and timm's EfficientNet.
    """
    if hasattr(net, "conv_stem"):
        return _efficientnet(net).eval()
    if hasattr(net, "features") and hasattr(net, "classifier"):
        return _chain(net).eval()
    raise ValueError(f"{type(net).__name__} is neither a chain of `features` and `classifier` nor an EfficientNet")


def with_rules(plain: nn.Module, gamma: float = 0.0) -> nn.Module:
    """A copy of a canonised net with rules for Captum, which takes them off again after one use.

    gamma   of the convolutions' γ-rule, 0 for the ε-rule everywhere
    """
    from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule, IdentityRule

    plain = copy.deepcopy(plain)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d) and gamma:
            module.rule = GammaRule(gamma)
        elif isinstance(module, nn.ReLU6):
            module.rule = IdentityRule()  # as Captum does for ReLU
        elif not list(module.children()) and not isinstance(module, (nn.ReLU, nn.Dropout)):
            module.rule = EpsilonRule()
    return plain


class Residual(nn.Module):
    """x + body(x), with the addition as a module that relevance can be shared out at."""

    def __init__(self, body: nn.Module) -> None:
        from captum.attr._utils.custom_modules import Addition_Module

        super().__init__()
        self.body, self.add = body, Addition_Module()

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.body(x))


def _fold(layers: list[nn.Module]) -> list[nn.Module]:
    """Copies, each batch norm in the convolution before it; nothing in place, which would change what LRP recorded."""
    out: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            out[-1] = fuse_conv_bn_eval(out[-1], layer)
        elif isinstance(layer, (nn.ReLU, nn.ReLU6)):
            out.append(type(layer)())
        elif not isinstance(layer, (nn.Identity, nn.Dropout)):
            out.append(copy.deepcopy(layer))
    return out


def _chain(net: nn.Module) -> nn.Sequential:
    between = [net.avgpool] if hasattr(net, "avgpool") else []
    return nn.Sequential(*_fold([*net.features, *between, nn.Flatten(), *net.classifier]))


def _efficientnet(net: nn.Module) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for block in (block for stage in net.blocks for block in stage):
        names = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
        if not hasattr(block, "conv_pwl"):
            names = [("conv_dw", "bn1"), ("conv_pw", "bn2")]
        body = nn.Sequential(*(layer for conv, norm in names for layer in _normed(getattr(block, conv),
                                                                                  getattr(block, norm))))
        blocks.append(Residual(body) if block.has_skip else body)
    return nn.Sequential(*_normed(net.conv_stem, net.bn1), *blocks, *_normed(net.conv_head, net.bn2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), copy.deepcopy(net.classifier))


def _normed(conv: nn.Module, norm: nn.Module) -> list[nn.Module]:
    """timm's norms are batch norm and activation in one."""
    plain = nn.BatchNorm2d(norm.num_features, norm.eps)
    plain.load_state_dict(norm.state_dict())
    with torch.no_grad():
        return _fold([conv, plain.eval(), *([norm.act] if isinstance(norm.act, (nn.ReLU, nn.ReLU6)) else [])])
