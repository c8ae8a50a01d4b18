"""One matrix a position for layers that act by position: W_far Σ_i diag(f_i) W_i, other factors f_i at each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specxai.native.triton import kernel_of

CHUNK = 1 << 22  # numbers that the scaled weights of some positions may take at once; one position's take what they do
CHUNK_CUDA = 1 << 28  # on a GPU, where a launch should have work
SPARSE = 0.75  # of the units, below which the dead ones are left out position by position

Times = Callable[[Tensor], Callable[[Tensor, Tensor], None]]  # as `matmul`


def position_matrices(left: Tensor, right: Sequence[Tensor], factors: Tensor, times: Times | None = None,
                      dtype: torch.dtype | None = None) -> Tensor:
    """left Σ_i diag(factors[i, p]) right[i] of every position p, (P, m, n).

    left      (m, h)
    right     (h, n) each
    factors   (parts, P, h), of 32 bits at least; zero where a unit is dead
    times     how they are multiplied; `matmul` if None, and with a dtype
    dtype     of the matrices, and of what is multiplied; None for that of `left`

    >>> W = torch.tensor([[1.0, 2.0]])
    >>> position_matrices(W, [W.T], torch.tensor([[[1.0, 1.0], [3.0, 0.5]]])).tolist()
    [[[5.0]], [[5.0]]]
    """
    live = factors.ne(0).any(0)
    if left.device.type == "cpu" and int(live.sum()) < SPARSE * live.numel():
        return _over_live(left, right, factors, live).to(dtype)
    multiply = matmul if times is None or dtype is not None else times
    left = left.to(dtype)
    (middle, columns), positions = right[0].shape, factors.shape[1]
    some = together(middle * columns, positions, left.device)
    made, room = left.new_empty(positions, len(left), columns), left.new_empty(some, middle, columns)
    multiplied = multiply(left)
    for start in range(0, positions, some):
        of = factors[:, start:start + some]
        multiplied(scaled(right, of, room[:of.shape[1]]), made[start:start + some])
    return made


def together(numbers: int, positions: int, device: torch.device) -> int:
    """Positions whose scaled weights, of so many numbers each, are there at once.

    >>> together(1 << 21, 100, torch.device("cpu"))
    2
    """
    return min(positions, max(1, (CHUNK if device.type == "cpu" else CHUNK_CUDA) // numbers))


def matmul(left: Tensor) -> Callable[[Tensor, Tensor], None]:
    """(matrices (p, h, n), room (p, m, n)) ↦ the products with `left` (m, h) into that room."""

    def multiply(right: Tensor, into: Tensor) -> None:
        for one, made in zip(right, into, strict=True):
            torch.mm(left, one, out=made)

    return multiply


def scaled(weights: Sequence[Tensor], factors: Tensor, room: Tensor) -> Tensor:
    """Σ_i factors[i, p, :, None] · weights[i], (p, h, n), in the room that is given."""
    kernel = kernel_of("scaled_weights", room.device)
    if kernel is not None and len(weights) <= 3 and room.dtype.itemsize <= 4:
        kernel([weight.contiguous() for weight in weights], factors.float().contiguous(), room)
        return room
    factors = factors[..., None]
    for number, (weight, factor) in enumerate(zip(weights, factors, strict=True)):
        torch.mul(weight, factor, out=room) if number == 0 else room.addcmul_(weight, factor)
    return room


def _over_live(left: Tensor, right: Sequence[Tensor], factors: Tensor, live: Tensor) -> Tensor:
    """The same position by position, without the units that are dead there."""
    made = left.new_empty(len(live), len(left), right[0].shape[1])
    for position, into in enumerate(made):
        at = live[position].nonzero().flatten()
        parts = [weight[at] for weight in right]
        room = torch.empty_like(parts[0])
        torch.mm(left[:, at], scaled(parts, factors[:, position, None, at], room[None])[0], out=into)
    return made
