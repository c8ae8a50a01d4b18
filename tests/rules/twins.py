"""Small transformers in plain torch whose held factors can be detached by hand: `hold` is told what is a gate."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, TOKENS = 16, 4, 5


class Twin(nn.Module):
    """A model that calls `held` on every factor that eq. (14) holds; detached or not."""

    detached = False

    def held(self, factor: Tensor) -> Tensor:
        return factor.detach() if self.detached else factor

    def secant(self, function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """σ(z), or σ(0) + h z with the slope h detached."""
        if not self.detached:
            return function(z)
        at_zero = function(torch.zeros_like(z))
        return at_zero + ((function(z) - at_zero) / z).detach() * z

    def layer_norm(self, norm: nn.LayerNorm, z: Tensor) -> Tensor:
        if not self.detached:
            return norm(z)
        centred = z - z.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt().detach() * norm.weight + norm.bias


class Llama(Twin):
    """Root-mean-square norms, rotary embedding, grouped heads, causal attention, SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        size = WIDTH // HEADS
        self.norms = nn.ParameterList(torch.rand(WIDTH) + 0.5 for _ in range(3))
        self.q, self.k, self.v = (nn.Linear(WIDTH, n * size, bias=False) for n in (HEADS, HEADS // 2, HEADS // 2))
        self.o, self.head = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 7, bias=False)
        self.gate, self.up = (nn.Linear(WIDTH, 24, bias=False) for _ in range(2))
        self.down = nn.Linear(24, WIDTH, bias=False)

    def rms(self, z: Tensor, weight: Tensor) -> Tensor:
        return weight * (z * self.held(torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6)))

    def turned(self, z: Tensor) -> Tensor:
        half = z.shape[-1] // 2
        angle = torch.arange(z.shape[-2], dtype=z.dtype)[:, None] / 10 ** torch.arange(half, dtype=z.dtype)
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        return z * cos + torch.cat([-z[..., half:], z[..., :half]], -1) * sin

    def attention(self, z: Tensor) -> Tensor:
        q, k, v = (part(z).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k, v = self.turned(q), self.turned(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        mask = torch.full((z.shape[1], z.shape[1]), -torch.inf, dtype=z.dtype).triu(1)
        pattern = self.held((q @ k.mT / q.shape[-1] ** 0.5 + mask).softmax(-1))
        return self.o((pattern @ v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.rms(x, self.norms[0]))
        z = self.rms(x, self.norms[1])
        x = x + self.down(self.held(F.silu(self.gate(z))) * self.up(z))
        return self.head(self.rms(x, self.norms[2]))


class Block(Twin):
    """Attention by the fused call and a GELU, each behind a layer norm (GPT-2, ViT) or with one behind it (BERT)."""

    def __init__(self, causal: bool, post: bool) -> None:
        super().__init__()
        self.causal, self.post = causal, post
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        for norm in (self.first, self.second):
            nn.init.normal_(norm.bias, 0, 0.3)
            nn.init.uniform_(norm.weight, 0.5, 1.5)

    def attention(self, z: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(z).chunk(3, -1))
        if not self.detached:
            return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if self.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
        return self.out((self.held(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2))

    def mlp(self, z: Tensor) -> Tensor:
        return self.down(self.secant(lambda y: F.gelu(y, approximate="tanh" if self.causal else "none"), self.up(z)))

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.layer_norm(self.first, x + self.attention(x))
            return self.layer_norm(self.second, x + self.mlp(x))
        x = x + self.attention(self.layer_norm(self.first, x))
        return x + self.mlp(self.layer_norm(self.second, x))


class Transformer(Twin):
    def __init__(self, causal: bool, post: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(causal, post), Block(causal, post))
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


class Pictures(Twin):
    """Patches, a class token, blocks of the pre-norm kind and a pooled tanh, gated by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.block, self.value, self.gate = Block(False, False), nn.Linear(WIDTH, 6), nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        z = self.patches(x).flatten(2).transpose(1, 2)
        z = self.block(torch.cat([self.token, z], 1))[:, 0]
        return self.value(z) * self.held(torch.tanh(self.gate(z)))


class Images(Twin):
    """Group and instance norms, and a softmax over channels that weighs two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.weigh = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 16)
        self.group, self.instance = nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)
        self.head = nn.Linear(8, 5)
        for norm in (self.group, self.instance):
            nn.init.normal_(norm.bias, 0, 0.3)

    def norm(self, norm: nn.Module, z: Tensor, groups: int) -> Tensor:
        if not self.detached:
            return norm(z)
        parts = z.reshape(1, groups, -1)
        parts = parts - parts.mean(-1, keepdim=True)
        parts = parts / (parts.square().mean(-1, keepdim=True) + norm.eps).sqrt().detach()
        return parts.reshape(z.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.norm(self.group, self.first(x), 2), self.norm(self.instance, self.second(x), 8)
        share = self.held(self.weigh((a + b).mean((2, 3))).reshape(1, 2, 8, 1, 1).softmax(1))
        return self.head((share[:, 0] * a + share[:, 1] * b).mean((2, 3)))


TWINS = {"llama": (Llama, (1, TOKENS, WIDTH)), "gpt-2": (lambda: Transformer(True, False), (1, TOKENS, WIDTH)),
         "bert": (lambda: Transformer(False, True), (1, TOKENS, WIDTH)), "vit": (Pictures, (1, 3, 8, 8)),
         "images": (Images, (1, 3, 6, 6))}


def pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """(the model, the same with its factors detached, x) in float64."""
    make, shape = TWINS[name]
    torch.manual_seed(3)
    model, by_hand = make().double().eval(), make().double().eval()
    by_hand.load_state_dict(model.state_dict())
    for module in by_hand.modules():
        if isinstance(module, Twin):
            module.detached = True
    return model, by_hand, torch.randn(shape, dtype=torch.float64)
