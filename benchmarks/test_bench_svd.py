"""Time, memory and error of the SVD of R: SpecXAI's backends beside torch.func, every peer in the same process.

A peer is compared with the reference before it is timed, and no row is without its error: the certified bound of
‖R − UΣVᵀ‖_F, the worst residual, and the true error of the singular values where a dense SVD fits.
"""

from __future__ import annotations

import fresh
import pytest
import torch
from cases import CASES, QUESTIONS
from peers import DENSE, NATIVE, PEERS, values_error

ROWS = [
    pytest.param(case, question, peer, case.rounds, question in case.long,
                 id=f"{case.name}-{question}-{peer.replace(' ', '-')}")
    for case in CASES.values() for question in QUESTIONS if question in case.questions + case.long for peer in PEERS
]  # fmt: skip


@pytest.mark.parametrize("case, question, peer, rounds, long", ROWS)
def test_svd(benchmark, options, subject_of, truths, record, case, question, peer, rounds, long):
    if long and not options.full:
        pytest.skip("a long one: --full runs it")
    subject = subject_of(case.name)
    left_out = {name: why for name in PEERS if (why := subject.left_out(name))}
    if peer in left_out:
        pytest.skip(left_out[peer])
    difference = subject.check(peer)

    work = subject.solver(peer, QUESTIONS[question])
    benchmark.group = f"{case.name} {question}"
    if peer == DENSE and len(subject.rows) > 1000:  # a minute of LAPACK needs neither warming up nor repeating
        rounds = 1
    elif options.full:
        rounds = max(rounds, 3)
    result = benchmark.pedantic(work, rounds=rounds, warmup_rounds=int(rounds > 1))

    answer = subject.answer(result)
    if peer == DENSE and case.name not in truths:
        truths[case.name] = torch.linalg.svdvals(result[0].double())
    truth = truths.get(case.name)
    m, n = subject.reference.shape
    flops = subject.reference.flops
    record(
        case=case.name, question=question, text=QUESTIONS[question].text, peer=peer, layer=case.layer, shape=[m, n],
        left_out=left_out, products=answer.products, gflop_per_product=round(flops / 1e9, 4),
        gflop=round(flops * answer.products / 1e9, 2), rank=len(answer.values), method=answer.method,
        converged=answer.converged, error=answer.error, estimate=answer.estimate,
        residual=answer.residual, values_error=None if truth is None else values_error(answer.values, truth),
        difference=difference,
        chunk=subject.chunk if peer.startswith("torch.func") else subject.reference.block_size, peak_mb=None,
    )  # fmt: skip
    del result
    if not options.no_memory and (peer != NATIVE or options.full):
        peak = fresh.measure("svd", case.name, question, peer, options.threads, subject.chunk)
        record(peak_mb=peak["peak_mb"])
