"""The lens of one layer as an operator over prompts, and its certified truncated SVD without the matrix.

J_l h = 1/n Σ_prompts 1/|V| Σ_{p′ in V} (∂h_L / ∂h_l · [h at every p in V])[p′].  What is decomposed is J_l − a I, since
the residual stream carries h along; a is about the mean of the diagonal, found with random signs, and any a is exact:
what is certified is the difference for the a that is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specxai import svd
from specxai.lens.factors import LowRank
from specxai.lens.linear import Linearised, Linearizer
from specxai.lens.sweep import ROWS
from specxai.operators import LinearOperator

SIGNS = 16  # random vectors that the mean of the diagonal is found with
BLOCK = 4  # columns of a Krylov block: narrow ones need the fewest products, and these cost no more (column_cost)


class LensOperator(LinearOperator):
    """J_l − a I (d, d) at one prompt list, by products with each prompt's map.

    Maps are kept while they fit into `max_memory`; those of further prompts are made anew for each product.

    Args:
        make: the linear map of a prompt.
        prompts: token ids (1, T), each with a valid position.
        number: which of the linearizer's layers.
        scale: a.
        max_memory: bytes that kept maps may hold.
    """

    def __init__(self, make: Linearizer, prompts: Sequence[Tensor], number: int, max_memory: int,
                 kept: dict[int, Linearised] | None = None) -> None:
        self._make, self._prompts, self._number = make, prompts, number
        self._room, self._kept = max_memory, {} if kept is None else kept
        first = self._map(0)
        self.scale = 0.0
        tokens = first.local.graph.shapes[first.target][1]
        super().__init__((first.width, first.width), first.local.input.dtype, first.local.input.device,
                         block_size=max(8, ROWS // tokens))

    def find_scale(self, seed: int) -> float:
        """Set a: the mean of zᵀJ_l z / d over random signs z."""
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (self.shape[1], SIGNS), generator=generator).to(self.device, self.dtype) * 2 - 1
        self.scale = 0.0
        self.scale = float((signs * self.matmat(signs)).double().mean())
        return self.scale

    def ensure_current(self) -> None:
        for found in self._kept.values():
            found.local.ensure_current()

    @property
    def own_products(self) -> bool:
        return True

    @property
    def flops(self) -> int:
        first = self._map(0)
        return len(self._prompts) * self._operator(first).reference.flops

    def column_cost(self, columns: int) -> float:
        """One column is as many rows as the prompt has tokens already."""
        return max(1.0, 2 / columns)

    def _map(self, number: int) -> Linearised:
        if number in self._kept:
            return self._kept[number]
        found = self._make.at(self._prompts[number])
        if found.value_bytes <= self._room:
            self._room -= found.value_bytes
            self._kept[number] = found
        return found

    def _operator(self, found: Linearised) -> LinearOperator:
        return found.local.operator([found.sources[self._number]], [found.target])

    def _matmat(self, X: Tensor) -> Tensor:
        return self._sum(X, lambda operator: operator.matmat) - self.scale * X

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._sum(Y, lambda operator: operator.rmatmat) - self.scale * Y

    def _sum(self, block: Tensor, product) -> Tensor:
        """The block at every valid position, through each prompt's map, added over valid positions; the mean."""
        total = torch.zeros_like(block)
        for number in range(len(self._prompts)):
            found = self._map(number)
            tokens = found.local.graph.shapes[found.target][1]
            spread = block.new_zeros(tokens, *block.shape)
            spread[found.valid] = block
            moved = product(self._operator(found))(spread.flatten(0, 1)).unflatten(0, (tokens, -1))[found.valid]
            total += moved.sum(0) / (len(moved) * len(self._prompts))
        return total


def decompose(make: Linearizer, prompts: Sequence[Tensor], rank: int, tol: float | None, seed: int, max_memory: int,
              progress: bool | None) -> dict[int, LowRank]:
    """{layer: the certified truncated SVD of J_l − a I}."""
    kept: dict[int, Linearised] = {}
    factors = {}
    for number, layer in enumerate(make.layers):
        operator = LensOperator(make, prompts, number, max_memory, kept)
        scale = operator.find_scale(seed)
        found = svd(operator, rank=rank, tol=tol, seed=seed, progress=progress, block_size=BLOCK)
        factors[layer] = LowRank(found.U, found.S, found.V, found.residuals, scale, float(found.error))
    return factors
