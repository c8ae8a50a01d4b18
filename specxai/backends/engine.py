"""What an engine is: it lowers the stages of a plan to something that runs, and says what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from specxai.plan import Stage

Passed = Callable[[int, Tensor], None]  # takes a step and the cotangents of its units, (units, k)


class Executable(Protocol):
    """One stage that runs, forward and adjoint, on blocks [row][probe].

    >>> import specxai
    >>> from specxai.backends.torch import TorchEngine
    >>> from specxai.plan import Planner
    >>> net = torch.nn.Linear(2, 1, bias=False).eval()
    >>> net.weight.data = torch.tensor([[3.0, 5.0]])
    >>> graph = specxai.linearize(net, torch.ones(1, 2)).graph
    >>> stage, = Planner(graph).plan([graph.input], [max(graph.nodes)], []).stages
    >>> work, arena = TorchEngine(torch.float32, torch.device("cpu")).lower(stage), torch.zeros(17, 1)
    >>> arena[stage.reads.flatten()] = torch.tensor([[1.0], [2.0]])
    >>> work.forward(arena, arena, 1, None)
    >>> arena[stage.writes.flatten()], work.multiply_adds
    (tensor([[13.]]), 2)
    """

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one probe, forward; 0 for what only moves or sums rows."""

    @property
    def kept(self) -> int:
        """Bytes of the tables that it keeps for both directions; copies of weights are not among them."""

    def scratch(self, stride: int) -> int:
        """Numbers that it holds beside the blocks while it runs on rows of so many; they never fall as those grow."""

    def forward(self, inside: Tensor, outside: Tensor, probes: int, mode: Any) -> None:
        """Write the stage's outputs, rows of `outside`, from what it reads, rows of `inside`.

        inside, outside   (rows, stride), which may be one block; the first `probes` numbers of a row count
        mode              what the engine's `mode` returned
        """

    def adjoint(self, outside: Tensor, inside: Tensor, probes: int, mode: Any) -> None:
        """Write the cotangents of what the stage reads, rows of `inside`, from those of its outputs.

        Where the stage's `place.accumulate` says so it adds to them.  Both are (rows, stride), as in `forward`.
        """


class Engine(Protocol):
    """Lowers stages, and knows how its blocks lie and what a product costs.

    name        as in `backend=`
    has_rough   are there cheaper products in fewer digits?
    grade       in which numbers products are, in words
    dtype       of its blocks

    >>> from specxai.backends.torch import TorchEngine
    >>> engine = TorchEngine(torch.float64, torch.device("cpu"))
    >>> engine.name, engine.has_rough, engine.stride_of(5), engine.empty(3, 5).shape
    ('torch', False, 5, torch.Size([3, 5]))
    """

    name: str
    has_rough: bool
    grade: str
    dtype: torch.dtype

    def lower(self, stage: Stage) -> Executable:
        """The stage, a `Gather`, `Sum`, `LowRank` or `Opaque`, as something that runs; it is called once a plan."""

    def graphs(self) -> Any:
        """What captures and replays an operator's passes (`specxai.backends.cuda.graphs`), or None."""

    # -- blocks -----------------------------------------------------------------------------------------------------

    def stride_of(self, probes: int) -> int:
        """Numbers of a row that holds so many probes."""

    def empty(self, rows: int, width: int) -> Tensor:
        """A block (rows, width) without values."""

    def columns(self, block: Tensor) -> Tensor:
        """The caller's block (rows, probes) as stages read it: row by row, each in one piece."""

    # -- costs ------------------------------------------------------------------------------------------------------

    def mode(self, probes: int, rough: bool, rows: int, work: Sequence[Executable]) -> Any:
        """How a product of so many columns over an arena of so many rows runs: whatever the executables take."""

    def room(self, columns: int, rows: int, work: Sequence[Executable]) -> int:
        """Numbers of the arena of such a product; they never fall as columns are added."""

    def column_cost(self, columns: int, rough: bool) -> float:
        """Time of a column of a product of so many, as a multiple of its operations at the processor's peak."""


class Products(Protocol):
    """R X and Rᵀ Y of one operator in the graph's dtype, (n, k) -> (m, k) and (m, k) -> (n, k), and what a column
    costs.

    >>> import specxai
    >>> from specxai.backends import make
    >>> graph = specxai.linearize(torch.nn.Linear(3, 2).eval(), torch.ones(1, 3)).graph
    >>> R = make("torch", graph).products([graph.input], [max(graph.nodes)], [])
    >>> R.backend, R.flops, R.matmat(torch.ones(3, 5)).shape
    ('torch', 12, torch.Size([2, 5]))
    """

    backend: str  # its name
    has_rough: bool  # are there cheaper products in fewer digits?
    precision: str  # in which numbers they are, in words
    opaque: list[int]  # steps that a plan runs through the reference's terms
    instead: list[tuple[int, str, str]]  # (step, engine, reason) of stages that another engine runs

    @property
    def flops(self) -> int:
        """Operations of one column's product, a multiply-add counted as two."""

    @property
    def flops_run(self) -> int:
        """The same as products run by now, where some of what they go through has been multiplied out."""

    def expect(self, columns: int, rough: bool = False) -> None:
        """So many columns will come, or so many `rough` ones alone."""

    def product_bytes(self, columns: int) -> int:
        """Bytes that a product of so many columns holds: block, result, arena, the most that a stage holds beside it,
        the tables of all stages, and the matrices that may come in place of wide middles.  Copies of weights, which are
        as large as the model's own, are not counted.
        """

    def bytes_moved(self, columns: int) -> int:
        """Bytes that a product of so many columns reads and writes, however large the caches are."""

    def column_cost(self, columns: int, rough: bool = False) -> float:
        """Time of a column of a product of so many, as a multiple of its operations at the processor's peak."""

    def costs(self) -> list[tuple[int, int, int]]:
        """(step, live units, operations of one column) of every weighted node; empty where all units are computed."""

    def matmat(self, X: Tensor, rough: bool = False) -> Tensor:
        """R X, (n, k) -> (m, k); `rough` allows fewer digits where `has_rough` says that there are such products."""

    def rmatmat(self, Y: Tensor, rough: bool = False, passed: Passed | None = None) -> Tensor:
        """Rᵀ Y, (m, k) -> (n, k); `passed` is called with each of the steps `taps`, on the way back."""


class Backend(Protocol):
    """Makes the products of the maps between the steps of one graph.

    name        as in `backend=`
    plan_from   columns from which its products are worth making; fewer run through the reference

    >>> import specxai
    >>> from specxai.backends import make
    >>> graph = specxai.linearize(torch.nn.ReLU().eval(), torch.tensor([[1.0, -2.0]])).graph
    >>> make("torch", graph).live_units([graph.input], [max(graph.nodes)], [])[graph.input].tolist()
    [True, False]
    """

    name: str
    plan_from: int

    def products(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                 columns: Tensor | None = None, rows: Tensor | None = None, taps: Sequence[int] = ()) -> Products:
        """The products of the map from the units of some steps to those of others, the steps `held` kept at zero.

        columns, rows   (units,) the only ones of the sources and targets, numbered one step after the other; None for
                        all
        taps            steps whose cotangents `rmatmat` passes on, where they lie between; of live units in a plan
        """

    def live_units(self, sources: Sequence[int], targets: Sequence[int], held: Sequence[int],
                   columns: Tensor | None = None, rows: Tensor | None = None) -> dict[int, torch.Tensor]:
        """The live units of the sources and of every step between: step -> mask (units,).

        columns, rows   (units,) the only ones of the sources and targets; None for all
        """
