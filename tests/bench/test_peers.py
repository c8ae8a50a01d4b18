"""The peers compute what SpecXAI computes: in float64 on small cases, before anything is timed."""

from __future__ import annotations

import json

import pytest
import torch

import specxai
from specxai.bench.cases import QUESTIONS, Case, autoencoder, digits, vision
from specxai.bench.operators import chain_of
from specxai.bench.peers import (
    ARPACK,
    AUTO,
    AUTOGRAD,
    CHAIN,
    MATRIX_FREE,
    PROPACK,
    REFERENCE,
    SKERCH,
    Subject,
    values_error,
)
from specxai.bench.run import run
from specxai.bench.table import markdown

SMALL = {
    "digits": Case("digits", digits, "features.18", ()),
    "autoencoder8": Case("autoencoder8", autoencoder, None, ()),
    "resnet18": Case("resnet18", lambda: vision("resnet18", 32), "layer2", ()),
    "alexnet": Case("alexnet", lambda: vision("alexnet", 80), "features.12", ()),
}


@pytest.fixture(scope="module", params=SMALL)
def subject(request) -> Subject:
    return Subject(SMALL[request.param], chunk=8, dtype=torch.float64)


@pytest.mark.parametrize("peer, forward", [(MATRIX_FREE, "linearize"), (MATRIX_FREE, "jvp"), (AUTOGRAD, "jvp"),
                                           (CHAIN, "jvp"), (AUTO, "jvp")])
def test_products_agree(subject, peer, forward):
    if why := subject.left_out(peer, "equal"):
        assert peer != CHAIN or chain_of(subject.model, subject.case.layer) is None
        pytest.skip(why)
    subject.check(peer)
    operator = subject.operator(peer, forward)
    X = torch.randn(operator.shape[1], 11, dtype=torch.float64)  # not a multiple of the chunk
    torch.testing.assert_close(operator @ X, subject.reference @ X, rtol=1e-10, atol=1e-10)


def test_singular_values_agree():
    subject = Subject(SMALL["digits"], chunk=8, dtype=torch.float64)
    dense = subject.answer(subject.dense())
    truth = torch.linalg.svdvals(subject.reference.to_dense())
    assert values_error(dense.values, truth) <= 1e-12
    peers = [peer for peer in (REFERENCE, MATRIX_FREE, AUTOGRAD, CHAIN, ARPACK, PROPACK)
             if not subject.left_out(peer, "first")]
    for peer in peers:
        answer = subject.answer(subject.solver(peer, QUESTIONS["first"])())
        assert answer.converged
        assert values_error(answer.values, truth) <= 1e-3


def test_a_wrong_peer_is_refused(monkeypatch):
    subject = Subject(SMALL["digits"], chunk=8)
    wrong = specxai.operators.DenseOperator(1.01 * subject.reference.to_dense())
    monkeypatch.setattr(subject, "operator", lambda peer, forward: wrong)
    with pytest.raises(AssertionError, match="differs from the reference"):
        subject.check(MATRIX_FREE)


def test_equal_products():
    subject = Subject(SMALL["resnet18"], chunk=8)
    counts = {peer: subject.answer(subject.solver(peer, QUESTIONS["equal"])()).products
              for peer in (REFERENCE, MATRIX_FREE)}  # fmt: skip
    assert len(set(counts.values())) == 1, counts


def test_skerch_says_whether_it_converged():
    subject = Subject(SMALL["digits"], chunk=8)
    if why := subject.left_out(SKERCH, "first"):
        pytest.skip(why)
    answer = subject.answer(subject.solver(SKERCH, QUESTIONS["first"])())
    assert answer.converged == (answer.residual <= 1e-3)


def test_a_run_is_a_table(tmp_path):
    said = []
    found = run(["autoencoder8"], ["passes", "exact"], [REFERENCE, AUTO], say=said.append)
    assert json.loads(json.dumps(found)) == found
    groups = {row["group"] for row in found["rows"]}
    assert "autoencoder8 exact" in groups
    assert len(said) == len(found["rows"])
    text = markdown(found)
    assert all(f"## {group}" in text for group in groups)
    if AUTO in {row["peer"] for row in found["rows"]}:
        assert "of peak" in text
        assert all(0 < row["of_peak"] < 1.5 for row in found["rows"] if row["question"] == "passes")
