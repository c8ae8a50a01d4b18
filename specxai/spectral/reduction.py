"""Reduction of mixed-sign contributions to one sign, paper eqs. (21)-(22).

α⁺ and α⁻ are sorted by magnitude and added order-wise; the unpaired tail is kept; this repeats until one sign is
left.  The sum is preserved, and every survivor remembers which spectral components were merged into it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Reduction", "reduce_alphas"]


@dataclass(frozen=True, eq=False, repr=False)
class Reduction:
    """Contributions of one sign, with the components merged into each (eqs. 21-22).

    values     (r,) float64, survivors by descending magnitude, all of one sign; they add up to Σα
    shares     (r,) float64, values / Σ values (eq. 22): non-negative, adding up to 1
    members    r tuples of component positions; the first of a tuple is its *dominant* component, the one whose
               magnitude decided the sign at every merge
    cancelled  tuples of positions that added up to exactly zero and left no survivor (a zero α is one of them)
    sign       +1 or −1, 0 when nothing is left
    rounds     how often (21) was applied

    >>> r = reduce_alphas([4.0, -1.0, -2.0, 1.5])
    >>> r.values.tolist(), r.members, r.rounds
    ([2.0, 0.5], ((0, 2), (3, 1)), 1)
    """

    values: torch.Tensor
    members: tuple[tuple[int, ...], ...]
    cancelled: tuple[tuple[int, ...], ...]
    sign: int
    rounds: int

    @property
    def shares(self) -> torch.Tensor:
        """(r,) the proportional contribution of each survivor, eq. (22)."""
        return self.values / self.values.sum()

    @property
    def dominant(self) -> list[int]:
        """The dominant component of each survivor, to show when only one picture per survivor fits."""
        return [group[0] for group in self.members]

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        lines = [f"Reduction: {len(self)} of sign {self.sign:+d} after {self.rounds} round(s), "
                 f"sum {float(self.values.sum()):.6g}, {len(self.cancelled)} cancelled"]
        rows = zip(self.values.tolist(), self.shares.tolist(), self.members, strict=True)
        for value, share, group in list(rows)[:10]:
            shown = ", ".join(map(str, group[:6])) + (", …" if len(group) > 6 else "")
            lines.append(f"  {value:+.6g}  {100 * share:5.1f} %  from [{shown}]")
        return "\n".join(lines)


def reduce_alphas(alpha: Sequence[float] | torch.Tensor) -> Reduction:
    """Apply (21) to contributions `alpha` (k,) until one sign is left.

    Raises ValueError for contributions that are not finite.

    >>> reduce_alphas([4.0, -1.0, -2.0]).values.tolist()
    [1.0]

    A round touches only the paired heads of the two lists, so two heaps serve: the merges number at most k − 1 over
    all rounds and the whole costs O(k log k), also where one large value eats thousands of small ones.
    """
    values = torch.as_tensor(alpha, dtype=torch.float64, device="cpu").reshape(-1).tolist()
    if any(v != v or abs(v) == float("inf") for v in values):
        raise ValueError(f"cannot reduce contributions that are not finite: {sum(v - v != 0 for v in values)} of "
                         f"{len(values)} are nan or inf; look for overflow in the model at this input")
    cancelled = [(k,) for k, v in enumerate(values) if v == 0]
    # Heap entries (−|value|, dominant position, tree of merged positions); the position breaks ties, so the result
    # does not depend on the order in which equal magnitudes arrive, and trees are never compared.
    heaps = {+1: [(-v, k, k) for k, v in enumerate(values) if v > 0],
             -1: [(v, k, k) for k, v in enumerate(values) if v < 0]}
    heapq.heapify(heaps[+1])
    heapq.heapify(heaps[-1])
    rounds = 0
    while heaps[+1] and heaps[-1]:
        rounds += 1
        pairs = min(len(heaps[+1]), len(heaps[-1]))
        heads = [(heapq.heappop(heaps[+1]), heapq.heappop(heaps[-1])) for _ in range(pairs)]
        for plus, minus in heads:
            total = minus[0] - plus[0]
            if total == 0:
                cancelled.append(_flatten((plus[2], minus[2])))
                continue
            sign, winner, loser = (+1, plus, minus) if total > 0 else (-1, minus, plus)
            heapq.heappush(heaps[sign], (-abs(total), winner[1], (winner[2], loser[2])))
    sign = +1 if heaps[+1] else -1 if heaps[-1] else 0
    left = sorted(heaps[sign]) if sign else []
    values = torch.tensor([-sign * entry[0] for entry in left], dtype=torch.float64, device="cpu")
    return Reduction(values=values,
                     members=tuple(_flatten(entry[2]) for entry in left),
                     cancelled=tuple(cancelled), sign=sign, rounds=rounds)


def _flatten(tree) -> tuple[int, ...]:
    """Positions in a merge tree, winners first.  Iterative: a tree may be as deep as there are components."""
    found, stack = [], [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            stack.extend((node[1], node[0]))
        else:
            found.append(node)
    return tuple(found)
