"""Small decoders of every kind: norms written in several ways, shared heads, gated middles."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import specxai
from specxai.backends.reference import pull
from specxai.backends.whole import joined

T, D, HEADS = 7, 12, 3


def turned(x: Tensor) -> Tensor:
    """Rotary embeddings of (…, T, h)."""
    angle = torch.outer(torch.arange(x.shape[-2]).double(), 2.0 ** -torch.arange(x.shape[-1] // 2).double())
    cos, sin = (part.repeat(1, 2).to(x) for part in (angle.cos(), angle.sin()))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class RMS(nn.Module):
    """`how` the norm is written."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.weight, self.how = nn.Parameter(1 + 0.3 * torch.randn(D)), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "weight first":
            return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        if self.how == "weight last":
            return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))
        if self.how == "one more":
            return (1 + self.weight) * (x / torch.sqrt((x * x).sum(-1, keepdim=True) / D + 1e-6))
        if self.how == "layer":
            return F.layer_norm(x, (D,), self.weight)
        return F.rms_norm(x, (D,), self.weight)


class Decoder(nn.Module):
    """One block: attention with rotations and shared heads, a feed-forward of a kind."""

    def __init__(self, norm: str, middle: str, shared: int, fused: bool) -> None:
        super().__init__()
        self.before, self.after, self.middle, self.shared, self.fused = RMS(norm), RMS(norm), middle, shared, fused
        width = D // HEADS
        self.sizes = (D, D // shared, D // shared)
        self.qkv = nn.ModuleList([nn.Linear(D, sum(self.sizes))] if fused else [nn.Linear(D, n) for n in self.sizes])
        self.width, self.out = width, nn.Linear(D, D)
        self.up = nn.Linear(D, 80 if middle == "chunked" else 40)
        self.gate, self.down = nn.Linear(D, 40), nn.Linear(40, D)

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x)
        parts = self.qkv[0](h).split(self.sizes, -1) if self.fused else [layer(h) for layer in self.qkv]
        q, k, v = (part.unflatten(-1, (-1, self.width)).transpose(1, 2) for part in parts)
        k, v = (part.repeat_interleave(self.shared, 1) for part in (k, v))
        y = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        h = self.after(x)
        if self.middle == "gated":
            m = F.silu(self.gate(h)) * self.up(h)
        elif self.middle == "chunked":
            gate, up = self.up(h).chunk(2, -1)
            m = F.gelu(gate) * up
        elif self.middle == "relu":
            m = F.relu(self.up(h))
        elif self.middle == "tanh by hand":
            z = self.up(h)
            m = 0.5 * z * (1 + torch.tanh(0.8 * (z + 0.04 * z**3)))
        else:
            m = F.gelu(self.up(h))
        return x + self.down(m)


def errors_of(net: Decoder, dtype: torch.dtype | None, device: str, columns: int) -> Iterator[float]:
    """Of cotangents pulled back through two such blocks in float32, or in a dtype's products, against single nodes in
    float64: without matrices of positions and with them.
    """
    x = torch.randn(1, T, D)
    exact = specxai.linearize(copy.deepcopy(net).double(), x.double(), backend="reference").graph
    graph = specxai.linearize(net.to(device), x.to(device), backend="reference").graph
    target = max(graph.nodes)
    y = torch.randn(columns, *graph.shapes[target])
    want, = pull(exact, {max(exact.nodes): y.double()}, [exact.input])
    whole = joined(graph, [graph.input, target], dtype)
    for found in ([], whole.middles(1000, 1 << 30)):
        part, _ = whole.between(graph.input, target, found)
        got, = pull(part, {target: y.to(device)}, [graph.input])
        yield float((got.cpu().double() - want).norm() / want.norm())
