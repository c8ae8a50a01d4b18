"""The adjoint of attention in plain torch, and how far from it rounding may lead: for the interpreter and for cards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tolerances import RELATIVE

# Half the distance from 1 to the next number.
UNITS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 0.0}


@dataclass(frozen=True)
class Attention:
    """What is held, in float64, as products take it; pattern also as it was given."""

    pattern: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float

    def adjoint(self, dO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dQ, dK, dV of (k, stack, T, h_v) in float64."""
        P = self.pattern
        dP = dO @ self.value.mT
        dS = P * (dP - (P * dP).sum(-1, keepdim=True))
        return self.scale * dS @ self.key, self.scale * dS.mT @ self.query, P.mT @ dO

    def bounds(self, dO: Tensor, dtype: torch.dtype, factors: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Of the error of each number of `adjoint` in blocks of dtype: dS, P and the results are rounded to it, sums
        are float32's, and factors of float32 blocks are rounded by so much."""
        unit, tiny = UNITS[dtype], torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        sums = RELATIVE[torch.float32] + 2 * factors
        P = self.pattern.abs()
        dP = dO @ self.value.mT
        most = dO.abs() @ self.value.abs().mT
        dS = P * (dP - (self.pattern * dP).sum(-1, keepdim=True)).abs()
        off = (2 * unit + sums) * dS + sums * P * (most + (P * most).sum(-1, keepdim=True)) + tiny
        return (abs(self.scale) * off @ self.key.abs() + tiny, abs(self.scale) * off.mT @ self.query.abs() + tiny,
                ((2 * unit + sums) * P + tiny).mT @ dO.abs() + tiny)


def drawn(k: int, stack: int, rows: int, keys: int, width: int, value_width: int, dtype: torch.dtype,
          held: torch.dtype | None = None, causal: bool = False, device: str = "cpu"):
    """(cotangent, the held four, empty blocks for the three, what is right): blocks seen through memory
    (k, length, stack, width) that is wider than they are."""
    generator = torch.Generator().manual_seed(k + 10 * rows + 100 * keys + width)
    held = held or dtype

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(held).to(device)

    scores = torch.randn(stack, rows, keys, generator=generator)
    if causal:
        scores.masked_fill_(torch.ones(rows, keys, dtype=torch.bool).triu(1), -torch.inf)
    pattern = torch.softmax(scores, -1).to(held).to(device)
    query, key, value = draw(stack, rows, width), draw(stack, keys, width), draw(stack, keys, value_width)
    dO = torch.randn(k, rows, stack, value_width + 3, generator=generator).to(dtype).to(device)[..., :value_width]
    made = [torch.full((k, length, stack + 1, size + 2), torch.nan, dtype=dtype, device=device)[:, :, :stack, :size]
            for length, size in ((rows, width), (keys, width), (keys, value_width))]
    scale = width**-0.5
    taken = [t.to(dtype).double() for t in (query, key, value)]
    return (dO.transpose(1, 2), (pattern, query, key, value), [t.transpose(1, 2) for t in made],
            Attention(pattern.double(), *taken, scale))


def assert_right(right: Attention, cotangent: Tensor, made: list[Tensor], factors: float = 0.0) -> None:
    """Entry by entry."""
    want = right.adjoint(cotangent.double())
    for name, got, exact, bound in zip(("dQ", "dK", "dV"), made, want,
                                       right.bounds(cotangent.double(), cotangent.dtype, factors), strict=True):
        error = (got.double() - exact).abs()
        assert bool((error <= bound).all()), f"{name} off by {(error / bound).max():.3g} of its bound"
