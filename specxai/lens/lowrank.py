"""The lens of one layer as an operator over prompts, and its certified truncated SVD without the matrix.

J_l h = 1/n Σ_prompts 1/|V| Σ_{p′ in V} (∂h_L / ∂h_l · [h at every p in V])[p′].  What is decomposed is J_l − a I, since
the residual stream carries h along; a is about the mean of the diagonal, found with random signs, and any a is exact:
what is certified is the difference for the a that is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specxai import svd
from specxai.affine.operator import LocalOperator
from specxai.backends import PLAN_FROM
from specxai.lens.factors import LowRank
from specxai.lens.linear import Linearised, Linearizer
from specxai.operators import LinearOperator

SIGNS = 4  # random vectors that the mean of the diagonal is found with: any mean near it serves
FEW = 6  # a rank is small where so many times as many columns are no more than J_l has
BLOCK = 8  # columns of a Krylov block: narrow ones need the fewest products, and narrower rows fill no vector


class LensOperator(LinearOperator):
    """J_l − a I (d, d) of several prompts, by products with each prompt's map.

    Maps that fit into `max_memory` are kept, with a plan; those of further prompts are made anew for each product, and
    go through whole values.

    Args:
        make: the linear map of a prompt.
        prompts: token ids (1, T), each with a valid position.
        number: which of the linearizer's layers.
        max_memory: bytes that kept maps may hold.
        kept: maps of earlier layers, number of the prompt -> map.
    """

    def __init__(self, make: Linearizer, prompts: Sequence[Tensor], number: int, max_memory: int,
                 kept: dict[int, Linearised]) -> None:
        self._make, self._prompts, self._number = make, prompts, number
        self._room, self._maps, self._planned = max_memory, kept, {}
        self.scale, first = 0.0, self._operator(0)[0]
        self._flops = first.reference.flops
        super().__init__(first.shape, first.dtype, first.device)

    def find_scale(self, seed: int) -> float:
        """Set a: the mean of zᵀJ_l z / d over random signs z."""
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (self.shape[1], SIGNS), generator=generator).to(self.device, self.dtype) * 2 - 1
        self.scale = 0.0
        self.scale = float((signs * self.matmat(signs)).double().mean())
        return self.scale

    def ensure_current(self) -> None:
        for operator, _ in self._planned.values():
            operator.ensure_current()

    @property
    def own_products(self) -> bool:
        return True

    @property
    def flops(self) -> int:
        return len(self._prompts) * self._flops

    def column_cost(self, columns: int) -> float:
        """One column is as many rows as the prompt has tokens already."""
        return max(1.0, 2 / columns)

    def _operator(self, number: int) -> tuple[LocalOperator, int]:
        """(a prompt's map summed over valid positions, how many those are)."""
        if number in self._planned:
            return self._planned[number]
        found = self._maps.get(number) or self._make.at(self._prompts[number])
        operator = found.between(found.sources[self._number])
        made, size = (operator, found.valid.stop - found.valid.start), found.value_bytes + found.plan_bytes
        if size <= self._room:
            self._room -= size
            self._maps[number], self._planned[number] = found, made
        else:
            operator.block_size = max(1, PLAN_FROM // 2)  # too few for a plan
        return made

    def _matmat(self, X: Tensor) -> Tensor:
        return self._mean(lambda operator: operator.matmat(X)) - self.scale * X

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._mean(lambda operator: operator.rmatmat(Y)) - self.scale * Y

    def _mean(self, product: Callable[[LocalOperator], Tensor]) -> Tensor:
        """Over prompts, of what each one's map makes, per valid position."""
        parts = (self._operator(number) for number in range(len(self._prompts)))
        return sum(product(operator) / (count * len(self._prompts)) for operator, count in parts)


def decompose(make: Linearizer, prompts: Sequence[Tensor], rank: int, tol: float | None, seed: int, max_memory: int,
              progress: bool | None) -> dict[int, LowRank]:
    """{layer: the certified truncated SVD of J_l − a I}."""
    kept: dict[int, Linearised] = {}
    factors = {}
    for number, layer in enumerate(make.layers):
        operator = LensOperator(make, prompts, number, max_memory, kept)
        scale = operator.find_scale(seed)
        # "auto" expects the flat spectra of random networks, for which it would take all of J_l sooner.
        method = "krylov" if FEW * rank <= operator.shape[0] else "auto"
        found = svd(operator, rank, tol, method, seed, progress, block_size=BLOCK)
        factors[layer] = LowRank(found.U, found.S, found.V, found.residuals, scale, float(found.error))
    return factors
