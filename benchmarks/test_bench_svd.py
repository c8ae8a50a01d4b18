"""Time, memory and error of the SVD of R: SpecXAI's backends beside every peer, in the same process.

A peer is compared with the reference before it is timed, and no row is without its error: the certified bound of
‖R − UΣVᵀ‖_F, the worst residual, and the true error of the singular values where a dense SVD fits.
"""

from __future__ import annotations

import pytest
import torch

from specxai.bench import fresh
from specxai.bench.cases import CASES, QUESTIONS
from specxai.bench.peers import AUTO, DENSE, PEERS
from specxai.bench.run import facts, rounds_of

ROWS = [
    pytest.param(case, question, peer, question in case.long,
                 id=f"{case.name}-{question}-{peer.replace(' ', '-')}")
    for case in CASES.values() for question in QUESTIONS if question in case.questions + case.long for peer in PEERS
]  # fmt: skip


@pytest.mark.parametrize("case, question, peer, long", ROWS)
def test_svd(benchmark, options, subject_of, truths, record, case, question, peer, long):
    if long and not options.full:
        pytest.skip("a long one: --full runs it")
    subject = subject_of(case.name)
    left_out = {name: why for name in PEERS if (why := subject.left_out(name, question))}
    if peer in left_out:
        pytest.skip(left_out[peer])
    difference = subject.check(peer)

    rounds = rounds_of(subject, peer, options.full)
    benchmark.group = f"{case.name} {question}"
    result = benchmark.pedantic(subject.solver(peer, QUESTIONS[question]), rounds=rounds,
                                warmup_rounds=int(rounds > 1))
    if peer == DENSE and case.name not in truths:
        truths[case.name] = torch.linalg.svdvals(result[0].double())
    record(facts(subject, question, peer, result, difference, truths.get(case.name), left_out))
    del result
    if not options.no_memory and (peer != AUTO or options.full):
        peak = fresh.measure("svd", case.name, question, peer, options.threads, subject.chunk)
        record(peak_mb=peak["peak_mb"])
