"""A Llama in plain PyTorch, on embeddings, for the benchmarks of transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Llama(nn.Module):
    """The decoder's final hidden state at the last position, (1, d), of embeddings (1, T, d).

    detached   as the field's detached Jacobian has it: scales, patterns and activated factors are constants
    """

    def __init__(self, d: int, layers: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(d, heads, kv_heads, hidden) for _ in range(layers))
        self.norm = Norm(d)

    def forward(self, x: Tensor, detached: bool = False) -> Tensor:
        return self.norm(self.stream(x, detached), detached)[:, -1]

    def stream(self, x: Tensor, detached: bool = False) -> Tensor:
        """What the last block leaves, (1, T, d)."""
        rotary = rotations(x.shape[1], self.blocks[0].width, x)
        for block in self.blocks:
            x = block(x, rotary, detached)
        return x


class Norm(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(d))

    def forward(self, x: Tensor, detached: bool) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x * (scale.detach() if detached else scale)


class Block(nn.Module):
    def __init__(self, d: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.width, self.groups = d // heads, heads // kv_heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, out, bias=False) for out in (
            d, kv_heads * self.width, kv_heads * self.width, d))
        self.gate, self.up, self.down = (nn.Linear(*sizes, bias=False) for sizes in (
            (d, hidden), (d, hidden), (hidden, d)))
        self.before, self.after, self.activation = Norm(d), Norm(d), F.silu

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], detached: bool) -> Tensor:
        h = self.before(x, detached)
        q, k, v = (layer(h).unflatten(-1, (-1, self.width)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (part.repeat_interleave(self.groups, 1) for part in (k, v))
        scores = turned(q, rotary) @ turned(k, rotary).mT / self.width**0.5
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        pattern = scores.masked_fill(later, float("-inf")).softmax(-1)
        pattern = pattern.detach() if detached else pattern
        x = x + self.o((pattern @ v).transpose(1, 2).flatten(2))
        h = self.after(x, detached)
        active = self.activation(self.gate(h))
        return x + self.down((active.detach() if detached else active) * self.up(h))


def rotations(tokens: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    rate = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.outer(torch.arange(tokens, dtype=torch.float64), rate).repeat(1, 2)
    return angle.cos().to(like), angle.sin().to(like)


def turned(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * rotary[0] + torch.cat([-second, first], -1) * rotary[1]
