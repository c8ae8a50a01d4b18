"""Whether the counts are any good: the ways of each layer as they are measured, against the counted choice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from timing import Clock

from specxai.backends.cuda import tuned
from specxai.bench.cases import SOLVER_SEED
from specxai.bench.peers import Subject

COUNTED, MEASURED = "specxai cuda, counted", "specxai cuda, measured"
Keep = Callable[[str, Iterator[dict]], list[dict]]  # (part, its rows)


class Pretended:
    """A rehearsal's clock: it runs the work, and every run is faster than the one before."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, work: Callable[[], None]) -> float:
        work()
        self.runs += 1
        return 0.9**self.runs


def ask(keep: Keep, clock: Clock, dry: bool, subject: Subject, columns: int, passes: tuple[float, int]) -> None:
    """Passes of one net in the counted ways, then in the measured ones; and what was measured of its stages."""
    case, known = subject.case.name, {row["stage"] for row in keep("choices", iter(()))}
    with setting("0"):
        keep("cases", _passes(clock, subject, COUNTED, columns, passes))
    with setting("again"), rehearsed(clock.device, dry):
        keep("cases", _passes(clock, subject, MEASURED, columns, passes))
        found = tuned.choices(clock.device).table()
    keep("choices", ({"case": case, **row} for row in found if row["stage"] not in known))


def _passes(clock: Clock, subject: Subject, peer: str, columns: int, passes: tuple[float, int]) -> Iterator[dict]:
    case = subject.case.name
    if clock.left < 0:
        yield {"case": case, "peer": peer, "left_out": "no time was left"}
        return
    operator, g = subject.operator("specxai cuda"), torch.Generator().manual_seed(SOLVER_SEED)
    X, Y = (torch.randn(size, columns, generator=g).to(subject.x) for size in operator.shape[::-1])
    for question, product, block, want in (("forward", operator.matmat, X, subject.reference.matmat),
                                           ("adjoint", operator.rmatmat, Y, subject.reference.rmatmat)):
        wanted = want(block[:, :2])
        error = float((product(block)[:, :2] - wanted).norm() / wanted.norm())
        product(block)  # which is captured
        told = clock.of(lambda product=product, block=block: product(block), *passes)
        yield {"case": case, "peer": peer, "question": question, "error": error,
               "gflop": operator.flops * columns / 1e9, **told}


@contextmanager
def setting(tune: str) -> Iterator[None]:
    """SPECXAI_TUNE as given."""
    before = os.environ.get("SPECXAI_TUNE")
    os.environ["SPECXAI_TUNE"] = tune
    try:
        yield
    finally:
        del os.environ["SPECXAI_TUNE"]
        if before is not None:
            os.environ["SPECXAI_TUNE"] = before


@contextmanager
def rehearsed(device: torch.device, dry: bool) -> Iterator[None]:
    """In a rehearsal a clock that pretends, as nothing is timed on a CPU."""
    if not dry:
        yield
        return
    with tuned.using(device, tuned.Choices(Pretended())):
        yield
