"""Random small nets of every kind of layer, for tests that hold over all of them."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS, SIDE = 4, 6


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if self.causal:
            return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        pattern = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.out((pattern @ v).transpose(1, 2).flatten(2))


class Apply(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Around(nn.Module):
    """A layer and a path around it: a sum, a product of gates, or a concatenation."""

    def __init__(self, inner: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if self.how == "add":
            return x + y
        if self.how == "gate":
            return x * torch.sigmoid(y)
        half = x.shape[1] // 2
        return torch.cat([x[:, :half], y[:, half:]], 1)


def _smooth(draw: random.Random) -> nn.Module:
    return draw.choice([nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.Mish, nn.SELU, nn.Hardswish])()


def _gate(draw: random.Random) -> nn.Module:
    return draw.choice([nn.ReLU, nn.ReLU, nn.LeakyReLU, lambda: nn.PReLU(CHANNELS), nn.ReLU6,
                        lambda: nn.Hardtanh(-0.7, 0.6), lambda: Apply(torch.abs)])()


def _image(draw: random.Random) -> nn.Module:
    """A layer that keeps (1, CHANNELS, SIDE, SIDE)."""
    c = CHANNELS
    return draw.choice([
        lambda: nn.Conv2d(c, c, 3, padding=1), lambda: nn.Conv2d(c, c, 3, padding=1, groups=c),
        lambda: nn.Conv2d(c, c, 1, bias=False), lambda: nn.Conv2d(c, c, 3, padding=2, dilation=2, groups=2),
        lambda: nn.BatchNorm2d(c), lambda: nn.GroupNorm(2, c), lambda: nn.InstanceNorm2d(c, affine=True),
        lambda: nn.LayerNorm([SIDE, SIDE]), lambda: nn.MaxPool2d(3, 1, 1), lambda: nn.AvgPool2d(3, 1, 1),
        lambda: Apply(lambda z: F.interpolate(F.adaptive_avg_pool2d(z, 3), scale_factor=2, mode="nearest")),
        lambda: Apply(lambda z: z.permute(0, 1, 3, 2)), lambda: Apply(lambda z: z.flip(2).roll(1, 1)),
        lambda: Apply(lambda z: z.reshape(1, c, -1)[:, :, ::1].reshape(z.shape)), lambda: _gate(draw),
        lambda: _gate(draw), lambda: _smooth(draw)])()


def _tokens(draw: random.Random, width: int) -> nn.Module:
    """A layer that keeps (1, tokens, width)."""
    return draw.choice([
        lambda: Attention(width, 2), lambda: nn.LayerNorm(width), lambda: nn.RMSNorm(width),
        lambda: nn.Sequential(nn.Linear(width, 9), nn.GELU(), nn.Linear(9, width)), lambda: nn.Linear(width, width),
        lambda: Attention(width, 2, causal=True), lambda: Apply(lambda z: z.cumsum(1)),
        lambda: Apply(lambda z: z.softmax(-1)), lambda: Apply(lambda z: z - z.mean(1, keepdim=True))])()


def random_net(seed: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A net of seven to thirteen layers, in eval mode, and an input (1, 2, SIDE, SIDE)."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(2, CHANNELS, 3, padding=1)]
    for _ in range(draw.randint(2, 5)):
        inner = _image(draw)
        layers.append(Around(inner, draw.choice(["add", "gate", "cat"])) if draw.random() < 0.35 else inner)
    layers.append(draw.choice([nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(3), nn.AdaptiveMaxPool2d(3)]))
    if draw.random() < 0.5:
        layers.append(Apply(lambda z: z.flatten(2).transpose(1, 2)))
        for _ in range(draw.randint(1, 2)):
            inner = _tokens(draw, CHANNELS)
            layers.append(Around(inner, "add") if draw.random() < 0.5 else inner)
    layers += [nn.Flatten(), nn.Linear(9 * CHANNELS, 8), _smooth(draw) if draw.random() < 0.5 else nn.ReLU(),
               nn.Linear(8, 5)]
    net = nn.Sequential(*layers)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return net.eval().to(dtype), torch.randn(1, 2, SIDE, SIDE, dtype=dtype)
