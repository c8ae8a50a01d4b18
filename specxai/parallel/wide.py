"""An operator whose products several processes make, and the block in which they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

from specxai.operators import Cut, LinearOperator
from specxai.parallel.team import LEADER, Order, Part, Team

__all__ = ["WideOperator", "columns"]

TIMEOUT = 600.0


@contextmanager
def columns(operator: LinearOperator, timeout: float = TIMEOUT) -> Iterator[LinearOperator | None]:
    """The operator (m, n) with the columns of each product spread over all processes of `torch.distributed`.

    Every process enters with the same operator, made from its own copy of the model, on its own device.  Process 0 gets
    an operator for the block of the `with`.  The others get None, after they have served until process 0 left its
    block.  Products are those of one process to rounding, and certificates hold as ever.

    Args:
        operator: the map of this process; LocalOperators, also their multiples and adjoints.
        timeout: seconds that a process waits for another: more than the longest product, and more than the leader
            ever computes between two.

    Raises:
        ParallelError: the processes' operators differ in shape or dtype, or in what they make of the same vectors;
            another process raised an error, which its text names, or was lost.
        RuntimeError: torch.distributed is not initialised.
        TypeError: operator is no LinearOperator.

    Example, for `torchrun --nproc-per-node=4 script.py`:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        torch.distributed.init_process_group()
        local = specxai.linearize(model.to(device), x.to(device))
        with specxai.parallel.columns(local.jacobian) as wide:
            if wide is not None:
                result = specxai.svd(wide, rank=50, block_size=4 * 64)

    In one process it is the operator itself:
        >>> import os, tempfile, torch, specxai
        >>> place = os.path.join(tempfile.mkdtemp(), "store")
        >>> torch.distributed.init_process_group("gloo", f"file://{place}", rank=0, world_size=1)
        >>> J = specxai.linearize(torch.nn.Linear(3, 2).eval(), torch.ones(1, 3)).jacobian
        >>> with specxai.parallel.columns(J) as wide:
        ...     wide.shape
        (2, 3)
        >>> torch.distributed.destroy_process_group()
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("torch.distributed is not initialised: start the script by torchrun, and call "
                           "torch.distributed.init_process_group() in it first")
    if not isinstance(operator, LinearOperator) and dist.get_world_size() == 1:
        raise TypeError(f"parallel.columns needs a LinearOperator, got {type(operator).__name__}")
    if dist.get_world_size() == 1:
        yield operator
        return
    team = Team(operator, timeout)
    try:
        team.agree()
        if team.rank != LEADER:
            team.serve()
            yield None
            return
        try:
            yield WideOperator(team, Part.WHOLE)
        finally:
            team.stop()
    finally:
        team.leave()


class WideOperator(LinearOperator):
    """An operator (m, n) whose products are made by all processes of a `columns` block; for process 0.

    `rough()` and the halves of `narrowest_cut()` are such operators too.  `flops` are those of one column, and
    `column_cost` what the columns of the process with most take, divided by the number of processes.

    Raises ParallelError where another process fails; the block must then be left.

    Example: see `columns`.
    """

    def __init__(self, team: Team, part: Part) -> None:
        self._team, self._part = team, part
        self._own = team.parts[part]
        super().__init__(self._own.shape, self._own.dtype, self._own.device)

    def _matmat(self, X: Tensor) -> Tensor:
        return self._team.product(self._part, Order.FORWARD, X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._team.product(self._part, Order.ADJOINT, Y)

    def ensure_current(self) -> None:
        self._team.check()

    @property
    def input_shape(self) -> torch.Size:
        return self._own.input_shape

    @property
    def output_shape(self) -> torch.Size:
        return self._own.output_shape

    @property
    def flops(self) -> int:
        return self._own.flops

    def column_cost(self, columns: int) -> float:
        busy = min(columns, self._team.size)
        return self._own.column_cost(-(-columns // self._team.size)) / busy

    @property
    def own_products(self) -> bool:
        return True

    @property
    def is_zero(self) -> bool:
        return self._own.is_zero

    def narrowest_cut(self) -> Cut | None:
        if self._part is not Part.WHOLE or self._team.cut is None:
            return None
        return Cut(self._team.cut.width, WideOperator(self._team, Part.LEFT), WideOperator(self._team, Part.RIGHT))

    def rough(self) -> LinearOperator | None:
        if self._part is not Part.WHOLE or self._own.rough() is None:
            return None
        return WideOperator(self._team, Part.ROUGH)
