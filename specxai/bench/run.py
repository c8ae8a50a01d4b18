"""One benchmark after the other in this process, each peer checked before it is timed; rows for `table.markdown`."""

from __future__ import annotations

import gc
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from statistics import median, quantiles

import torch

from specxai import native
from specxai.bench import fresh
from specxai.bench.cases import CASES, COLUMNS, QUESTIONS
from specxai.bench.peers import AUTO, DENSE, PEERS, SOLVERS, Subject, find, values_error

PASSES = "passes"  # the question without a solver: what rate one product of 64 columns runs at


def questions_of(case: str, asked: Sequence[str], full: bool) -> list[str]:
    """Those asked that the case has an answer to; its long ones where they are asked for by name, or with `full`."""
    known = CASES[case]
    own = [*known.questions, *(known.long if full or asked else ()), PASSES]
    return [question for question in own if not asked or question in asked]


def run(cases: Sequence[str], questions: Sequence[str] = (), peers: Sequence[str] = PEERS, full: bool = False,
        memory: bool = False, say: Callable[[str], None] = lambda line: None) -> dict:
    """{"machine": where it ran, "rows": one a measurement}.

    questions   names, none for every case's own
    full        the long questions too, three rounds at least
    memory      peaks of memory as well, each in a process of its own
    say         told each row as it is done
    """
    rows = []
    for name in cases:
        subject, truth = find(name), {}
        for question in questions_of(name, questions, full):
            measured = passes(subject) if question == PASSES else svds(subject, question, peers, full, memory, truth)
            for row in measured:
                rows.append(row)
                say(line(row))
    return {"machine": machine(), "rows": rows}


def svds(subject: Subject, question: str, peers: Sequence[str], full: bool, memory: bool,
         truth: dict) -> Iterator[dict]:
    """One row a peer.  `truth` keeps the dense singular values for the peers after."""
    left_out = {peer: why for peer in peers if (why := subject.left_out(peer, question))}
    for peer in peers:
        if peer in left_out:
            continue
        difference = subject.check(peer)
        rounds = rounds_of(subject, peer, full)
        try:
            result, times = timed(subject.solver(peer, QUESTIONS[question]), rounds)
        except (ArithmeticError, RuntimeError, ValueError) as error:
            if peer not in SOLVERS:
                raise
            left_out[peer] = f"failed: {str(error).splitlines()[0]}"  # their solver, not our products
            continue
        if peer == DENSE and not truth:
            truth["values"] = torch.linalg.svdvals(result[0].double())
        row = {"group": f"{subject.case.name} {question}", **spread(times),
               **facts(subject, question, peer, result, difference, truth.get("values"), left_out)}
        if question.startswith("default") and peer == AUTO:
            live = subject.operator(AUTO).flops * row["products"]
            row["of_peak"] = live / row["median"] / native.multiply_add_peak(subject.x.dtype)
        del result
        gc.collect()
        if memory:
            row["peak_mb"] = fresh.measure("svd", subject.case.name, question, peer, torch.get_num_threads(),
                                           subject.chunk)["peak_mb"]
        yield row


def passes(subject: Subject) -> Iterator[dict]:
    """One product of 64 columns forward and adjoint: its live operations beside the multiply-adds that registers alone
    would allow, and the rows that stages read and write beside what a copy moves."""
    if subject.left_out(AUTO, PASSES):
        return
    operator = subject.operator(AUTO)
    m, n = operator.shape
    generator = torch.Generator().manual_seed(0)
    # The best of several moments: another guest of the machine halves it now and then.
    peak = native.multiply_add_peak(subject.x.dtype)
    done = []
    for direction, size in (("forward", n), ("adjoint", m)):
        block = torch.randn(size, COLUMNS, generator=generator).to(operator.dtype)
        product, reference = ((operator.matmat, subject.reference.matmat) if direction == "forward" else
                              (operator.rmatmat, subject.reference.rmatmat))
        result, times = timed(lambda p=product, b=block: p(b), 5)
        peak = max(peak, native.multiply_add_peak(subject.x.dtype))
        want = reference(block[:, :1])
        error = float((result[:, :1] - want).norm() / want.norm())
        done.append((direction, times, error))
    gflop, moved, copied = operator.flops * COLUMNS / 1e9, operator.bytes_moved(COLUMNS), copy_rate()
    for direction, times, error in done:
        yield {"group": f"{subject.case.name} {PASSES}", **spread(times), "case": subject.case.name, "question": PASSES,
               "text": f"one product of {COLUMNS} columns; live operations, against {peak / 1e9:.0f} GFLOP/s of "
                       "multiply-adds on registers alone", "peer": f"{AUTO}, {direction}",
               "error": error, "gflop": gflop, "of_peak": gflop * 1e9 / median(times) / peak,
               "of_memory": moved / copied / median(times)}


def copy_rate(size: int = 256 << 20) -> float:
    """Bytes read and written a second by a copy of `size` bytes, the best of five."""
    source = torch.ones(size, dtype=torch.uint8)
    to = torch.empty_like(source)
    to.copy_(source)  # its pages are there then
    return 2 * size / min(timed(lambda: to.copy_(source), 1)[1][0] for _ in range(5))


def rounds_of(subject: Subject, peer: str, full: bool) -> int:
    """Timed repetitions; a minute of LAPACK needs none."""
    if peer == DENSE and len(subject.rows) > 1000:
        return 1
    return max(subject.case.rounds, 3) if full else subject.case.rounds


def timed(work: Callable, rounds: int) -> tuple[object, list[float]]:
    """The last result and the seconds of each round, after one to warm up where there are several."""
    times, result = [], None
    for i in range(rounds + (rounds > 1)):
        result = None  # its memory, before the next needs as much
        start = time.perf_counter()
        result = work()
        if i or rounds == 1:
            times.append(time.perf_counter() - start)
    return result, times


def spread(times: list[float]) -> dict:
    quarters = quantiles(times, n=4) if len(times) > 1 else (0.0, 0.0, 0.0)
    return {"median": median(times), "iqr": quarters[2] - quarters[0], "rounds": len(times)}


def facts(subject: Subject, question: str, peer: str, result, difference: float, truth, left_out: dict) -> dict:
    """What a row says of its result beside the time."""
    answer, (m, n) = subject.answer(result), subject.reference.shape
    flops = subject.reference.flops
    return {
        "case": subject.case.name, "question": question, "text": QUESTIONS[question].text, "peer": peer,
        "layer": subject.case.layer, "shape": [m, n], "left_out": left_out, "products": answer.products,
        "gflop_per_product": round(flops / 1e9, 4), "gflop": round(flops * answer.products / 1e9, 2),
        "rank": len(answer.values), "method": answer.method, "converged": answer.converged, "error": answer.error,
        "estimate": answer.estimate, "residual": answer.residual,
        "values_error": None if truth is None else values_error(answer.values, truth), "difference": difference,
        "chunk": subject.reference.block_size if peer.startswith("specxai") else subject.chunk, "peak_mb": None,
    }  # fmt: skip


def machine() -> dict:
    return {"cpu": _cpu(), "threads": torch.get_num_threads(), "torch": torch.__version__,
            "python": platform.python_version(), "date": date.today().isoformat()}


def line(row: dict) -> str:
    """A row as it is done."""
    seconds = row["median"]
    text = f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
    worst = f", residual {row['residual']:.1e} λ₁" if row.get("residual") is not None else ""
    rate = f", {row['of_peak']:.0%} of the peak" if "of_peak" in row else ""
    rate += f", {row['of_memory']:.0%} of the memory's" if "of_memory" in row else ""
    return f"{row['group']}: {row['peer']} {text}{worst}{rate}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or sys.platform
    return next((text.split(":")[1].strip() for text in lines if text.startswith("model name")), platform.machine())
