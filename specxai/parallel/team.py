"""What the processes of one block say to each other: orders and errors on the CPU, columns where they can go."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from specxai._once import once
from specxai.errors import ParallelError
from specxai.operators import Cut, LinearOperator
from specxai.operators.later import checked_later
from specxai.precision import full_precision
from specxai.svd.products import gaussian, generator_of

__all__ = ["LEADER", "Order", "Part", "Team"]

LEADER = 0
TEXT = 2048  # bytes of what processes tell each other in words
PROBES = 2
SAME = 1e3  # roundings by which the same product may differ between processes


class Order(IntEnum):
    STOP = 0
    FORWARD = 1
    ADJOINT = 2
    CHECK = 3


class Part(IntEnum):
    """Which operator is multiplied: the one given, its rough products, or a half of its narrowest cut."""

    WHOLE = 0
    ROUGH = 1
    LEFT = 2
    RIGHT = 3


class _Parts:
    """Part -> the operator of this process, found when it is first asked for."""

    def __init__(self, whole: LinearOperator) -> None:
        self._whole = whole

    @once
    def cut(self) -> Cut | None:
        return self._whole.narrowest_cut()

    @once
    def _rough(self) -> LinearOperator | None:
        return self._whole.rough()

    def __getitem__(self, part: Part) -> LinearOperator:
        found = {Part.WHOLE: lambda: self._whole, Part.ROUGH: lambda: self._rough,
                 Part.LEFT: lambda: self.cut and self.cut.left, Part.RIGHT: lambda: self.cut and self.cut.right}[part]()
        if found is None:
            raise LookupError(f"the operator of this process has no {part.name.lower()} part, which another's has")
        return found


class Team:
    """One process's side of a block.

    timeout   seconds that it waits for another
    """

    def __init__(self, operator: LinearOperator, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._operator, self._timeout = operator, timeout
        self.parts = _Parts(operator)
        self._words = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._lock = threading.Lock()
        self._lost: set[int] = set()

    @property
    def cut(self) -> Cut | None:
        return self.parts.cut

    @once
    def _carrier(self) -> torch.device:
        """Where columns lie when they are sent."""
        between = "nccl" in str(dist.get_backend_config()) and self._operator.device.type == "cuda"
        return self._operator.device if between else torch.device("cpu")

    def agree(self) -> None:
        """ParallelError, in every process, where their operators are not the same."""
        self._compare(self._described, lambda mine, first: "" if mine == first else f"has {mine}, process 0 {first}")
        self._compare(self._probed, self._differs)

    def _described(self) -> dict[str, Any]:
        operator = self._operator
        if not isinstance(operator, LinearOperator):
            raise TypeError(f"parallel.columns needs a LinearOperator, got {type(operator).__name__}")
        return {"shape": list(operator.shape), "dtype": str(operator.dtype)}

    def _probed(self) -> dict[str, Any]:
        """yᵀ R x of random vectors, and ‖R x‖."""
        operator, generator = self._operator, generator_of(0)
        if 0 in operator.shape:
            return {"numbers": [], "norm": 0.0}
        X, Y = (gaussian(side, PROBES, generator, operator) for side in operator.shape[::-1])
        with full_precision(operator.device):
            image = operator.matmat(X).double()
            return {"numbers": (Y.double().mT @ image).flatten().tolist(), "norm": float(torch.linalg.norm(image))}

    def _differs(self, mine: dict[str, Any], first: dict[str, Any]) -> str:
        size = max(mine["norm"], first["norm"])
        off = max((abs(a - b) for a, b in zip(mine["numbers"], first["numbers"], strict=True)), default=0.0)
        allowed = SAME * torch.finfo(self._operator.dtype).eps * size
        if off <= allowed or mine == first:  # NaN is not; numbers that are not finite are the solver's to refuse
            return ""
        return (f"makes products that differ from process 0's by {off / size:.0e} of their size; have all the same "
                "weights and the same input, and is the model in eval mode?")

    def _compare(self, said: Callable[[], dict], differs: Callable[[dict, dict], str]) -> None:
        try:
            mine = said()
        except Exception as error:  # the others must hear of it, or they would wait for this process
            mine = {"error": _line(error)}
        heard = self._all_say(mine)
        for rank, other in enumerate(heard):
            if "error" in other:
                raise ParallelError(f"process {rank}: {other['error']}")
        for rank, other in enumerate(heard):
            if wrong := differs(other, heard[LEADER]):
                raise ParallelError(f"process {rank} {wrong}")

    def _all_say(self, mine: dict) -> list[dict]:
        words = torch.zeros(TEXT, dtype=torch.uint8)
        text = json.dumps(mine, ensure_ascii=False).encode()
        words[:len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        heard = [torch.empty_like(words) for _ in range(self.size)]
        self._finish(dist.all_gather(heard, words, group=self._words, async_op=True), None)
        return [json.loads(bytes(t.tolist()).rstrip(b"\0")) for t in heard]

    # The leader's side.

    def product(self, part: Part, order: Order, block: Tensor) -> Tensor:
        rows = self.parts[part].shape[0 if order is Order.FORWARD else 1]
        pieces = block.tensor_split(self.size, 1)
        result = block.new_empty(rows, block.shape[1])
        into = result.tensor_split(self.size, 1)

        def mine() -> None:
            into[LEADER].copy_(self._multiply(part, order, pieces[LEADER]))

        self._together({rank: (order, part, pieces[rank], into[rank])
                        for rank in range(1, self.size) if pieces[rank].shape[1]}, mine)
        return result

    def check(self) -> None:
        asked = dict.fromkeys(range(1, self.size), (Order.CHECK, Part.WHOLE, None, None))
        self._together(asked, self._operator.ensure_current)

    def _together(self, asked: dict[int, tuple], mine: Callable[[], None]) -> None:
        """Ask others, do what is this process's own, and take what they answer, errors last."""
        with self._lock:
            if self._lost:
                raise ParallelError(f"process {min(self._lost)} was lost in an earlier product; leave the block, and "
                                    "start all processes again")
            errors: list[Exception] = []
            sent: list[tuple] = []  # (rank, work) of what is on its way

            def tried(step: Callable[[], None]) -> None:
                try:
                    step()
                except Exception as error:  # raised below, once all have answered
                    errors.append(error)

            for rank, (order, part, piece, _) in asked.items():
                tried(lambda rank=rank, order=order, part=part, piece=piece: sent.extend(
                    (rank, work) for work in self._ask(rank, order, part, piece)))
            tried(mine)
            for rank, (*_, into) in asked.items():
                if rank not in self._lost:
                    tried(lambda rank=rank, into=into: self._answer(rank, into))
            for rank, work in sent:
                if rank not in self._lost:
                    tried(lambda rank=rank, work=work: self._finish(work, rank))
            if errors:
                raise errors[0]

    def _ask(self, rank: int, order: Order, part: Part, piece: Tensor | None) -> list:
        rows, width = (0, 0) if piece is None else piece.shape
        begun = [self._start(dist.isend, torch.tensor([order, part, rows, width]), rank, self._words)]
        if piece is not None:
            begun.append(self._start(dist.isend, piece.to(self._carrier).contiguous(), rank, None))
        return begun

    def _answer(self, rank: int, into: Tensor | None) -> None:
        length = int(self._receive(torch.zeros(1, dtype=torch.int64), rank, self._words))
        if length:
            text = self._receive(torch.empty(length, dtype=torch.uint8), rank, self._words)
            raise ParallelError(f"process {rank}: {bytes(text.tolist()).decode()}")
        if into is not None:
            into.copy_(self._receive(torch.empty(into.shape, dtype=into.dtype, device=self._carrier), rank, None))

    def stop(self) -> None:
        """Tell the others that the leader leaves; who is lost needs no word."""
        with self._lock:
            for rank in {*range(1, self.size)} - self._lost:
                with suppress(ParallelError):  # the block ends, with its own error if it has one
                    for work in self._ask(rank, Order.STOP, Part.WHOLE, None):
                        self._finish(work, rank)

    def leave(self) -> None:
        if not self._lost:
            dist.destroy_process_group(self._words)

    # The others' side.

    def serve(self) -> None:
        """Multiply what the leader sends until it leaves."""
        with full_precision(self._operator.device), checked_later():
            while True:
                order, part, *shape = self._receive(torch.zeros(4, dtype=torch.int64), LEADER, self._words).tolist()
                if order == Order.STOP:
                    return
                self._reply(Order(order), Part(part), shape)

    def _reply(self, order: Order, part: Part, shape: list[int]) -> None:
        # Columns are taken before anything can fail: the leader sends them in any case.
        block = None
        if order is not Order.CHECK:
            room = torch.empty(shape, dtype=self._operator.dtype, device=self._carrier)
            block = self._receive(room, LEADER, None)
        try:
            result = None
            if block is None:
                self._operator.ensure_current()
            else:
                result = self._multiply(part, order, block.to(self._operator.device)).to(self._carrier).contiguous()
        except Exception as error:  # for the leader to raise
            text = torch.frombuffer(bytearray(_line(error).encode()), dtype=torch.uint8)
            self._send(torch.tensor([len(text)]), self._words)
            self._send(text, self._words)
            return
        self._send(torch.tensor([0]), self._words)
        if result is not None:
            self._send(result, None)

    def _multiply(self, part: Part, order: Order, block: Tensor) -> Tensor:
        operator = self.parts[part]
        return operator.matmat(block) if order is Order.FORWARD else operator.rmatmat(block)

    # What both say and hear.

    def _send(self, t: Tensor, group) -> None:
        self._finish(self._start(dist.isend, t, LEADER, group), LEADER)

    def _receive(self, t: Tensor, rank: int, group) -> Tensor:
        self._finish(self._start(dist.irecv, t, rank, group), rank)
        return t

    def _start(self, call, t: Tensor, rank: int, group):
        try:
            return call(t, rank, group=group)
        except RuntimeError as error:
            raise self._gone(rank, error) from None

    def _finish(self, work, rank: int | None) -> None:
        try:
            work.wait(timedelta(seconds=self._timeout))
        except RuntimeError as error:
            raise self._gone(rank, error) from None

    def _gone(self, rank: int | None, error: Exception) -> ParallelError:
        self._lost.add(LEADER if rank is None else rank)
        who = "another process" if rank is None else f"process {rank}"
        return ParallelError(f"{who} has ended, or has been silent for {self._timeout:g} s: look at its own output "
                             f"({_line(error)})")


def _line(error: Exception) -> str:
    """Its kind and its text in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:TEXT // 8]  # of up to four bytes each
