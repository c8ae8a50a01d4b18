"""What an engine is: it lowers the stages of a plan to something that runs, and says what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from specxai.plan import Stage


class Executable(Protocol):
    """One stage that runs, forward and adjoint, on blocks [row][probe].

    multiply_adds   of one probe, forward
    """

    @property
    def multiply_adds(self) -> int: ...

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        """Write the stage's outputs, rows of `outside`, from what it reads, rows of `inside`."""

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        """Write, or add to, the cotangents of what it reads, rows of `inside`."""


class Engine(Protocol):
    """Lowers stages, and knows how its blocks lie and what a product costs.

    name        as in `backend=`
    has_rough   are there cheaper products in fewer digits?
    """

    name: str
    has_rough: bool

    def lower(self, stage: Stage) -> Executable: ...

    # -- blocks -----------------------------------------------------------------------------------------------------

    def stride_of(self, probes: int) -> int:
        """Numbers of a row that holds so many probes."""

    def empty(self, rows: int, width: int) -> Tensor:
        """A block without values."""

    def columns(self, block: Tensor) -> Tensor:
        """The caller's block as stages read it: row by row, each in one piece."""

    # -- costs ------------------------------------------------------------------------------------------------------

    def mode(self, probes: int, rough: bool, rows: int, work: Sequence[Executable]) -> Any:
        """How a product of so many columns over an arena of so many rows runs: whatever the executables take."""

    def room(self, columns: int, rows: int, work: Sequence[Executable]) -> int:
        """Numbers that such a product holds beside the caller's blocks; they never fall as columns are added."""

    def column_cost(self, columns: int, rough: bool) -> float:
        """Time of a column of a product of so many, as a multiple of its operations at the processor's peak."""


class Products(Protocol):
    """R X and Rᵀ Y of one operator in the graph's dtype, (n, k) -> (m, k) and (m, k) -> (n, k), and what a column
    costs."""

    backend: str  # its name
    has_rough: bool  # are there cheaper products in fewer digits?
    opaque: list[int]  # steps that a plan runs through the reference's terms
    instead: list[tuple[int, str, str]]  # (step, engine, reason) of stages that another engine runs

    @property
    def flops(self) -> int: ...
    def product_bytes(self, columns: int) -> int: ...
    def bytes_moved(self, columns: int) -> int: ...
    def column_cost(self, columns: int, rough: bool = False) -> float: ...
    def costs(self) -> list[tuple[int, int, int]]: ...
    def matmat(self, X: Tensor, rough: bool = False) -> Tensor: ...
    def rmatmat(self, Y: Tensor, rough: bool = False) -> Tensor: ...


class Backend(Protocol):
    """Makes the products of the maps between the steps of one graph.

    plan_from   columns from which its products are worth making; fewer run through the reference
    """

    name: str
    plan_from: int

    def products(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                 columns: Tensor | None = None, rows: Tensor | None = None) -> Products: ...

    def live_units(self, sources: Sequence[int], targets: Sequence[int],
                   held: Sequence[int]) -> dict[int, torch.Tensor]:
        """step -> mask of its live units (flat), for the sources and every step between."""
