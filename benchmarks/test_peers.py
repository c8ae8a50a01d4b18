"""The peers compute what SpecXAI computes: in float64 on small cases, before anything is timed."""

from __future__ import annotations

import pytest
import torch
from cases import QUESTIONS, Case, autoencoder, digits, vision
from peers import MATRIX_FREE, NATIVE, REFERENCE, Subject, values_error

import specxai

SMALL = {
    "digits": Case("digits", digits, "features.18", ()),
    "autoencoder8": Case("autoencoder8", autoencoder, None, ()),
    "resnet18": Case("resnet18", lambda: vision("resnet18", 32), "layer2", ()),
}


@pytest.fixture(scope="module", params=SMALL)
def subject(request) -> Subject:
    return Subject(SMALL[request.param], chunk=8, dtype=torch.float64)


@pytest.mark.parametrize("peer", [MATRIX_FREE, NATIVE])
@pytest.mark.parametrize("forward", ["linearize", "jvp"])
def test_products_agree(subject, peer, forward):
    if why := subject.left_out(peer):
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
    for peer in (REFERENCE, MATRIX_FREE):
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
