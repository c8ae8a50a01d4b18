"""Weights scaled row by row at every position, in the interpreter."""

from __future__ import annotations

import pytest
import torch

from rounding import assert_rounded
from specxai.kernels.scaled_weights import POSITIONS, scaled_weights

STORED = [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("made", STORED, ids=str)
@pytest.mark.parametrize(("parts", "positions", "h", "n"), [
    (1, 1, 1, 1), (2, 3, 7, 8), (3, POSITIONS, 9, 7), (2, POSITIONS + 1, 33, 150), (3, 2 * POSITIONS + 3, 10, 300),
    (1, 3, 130, 9), (2, 5, 8, 512)])
def test_values(stored, made, parts, positions, h, n):
    weights = list(torch.randn(parts, h, n).to(stored))
    factors = torch.randn(parts, positions, h)
    got, again = (torch.empty(positions, h, n, dtype=made) for _ in range(2))
    for out in (got, again):
        scaled_weights(weights, factors, out)
    assert torch.equal(got, again)
    want = sum(factor.double()[:, :, None] * weight.double() for factor, weight in zip(factors, weights, strict=True))
    assert_rounded(got, want, torch.float32)


def test_rounds_once_to_the_nearest():
    """Sums of integers are exact: what is stored has the bits of torch's own rounding, ties to even included."""
    weights = torch.randint(-200, 200, (3, 20, 40)).bfloat16()
    factors = torch.randint(-9, 9, (3, 5, 20)).float()
    exact = torch.einsum("iph,ihn->phn", factors.double(), weights.double())
    assert (exact != exact.bfloat16().double()).any(), "nothing is rounded"
    got = torch.empty(exact.shape, dtype=torch.bfloat16)
    scaled_weights(list(weights), factors, got)
    assert torch.equal(got, exact.bfloat16())


def test_nothing_to_do():
    for positions, h, n in ((0, 2, 3), (2, 0, 3), (2, 3, 0)):
        out = torch.empty(positions, h, n)
        scaled_weights([torch.ones(h, n)], torch.ones(1, positions, h), out)
        assert out.shape == (positions, h, n)


@pytest.mark.parametrize(("name", "change", "error", "message"), [
    ("weights", lambda t: [], ValueError, "one to 3 weights, got 0"),
    ("weights", lambda t: t * 2, ValueError, "one to 3 weights, got 4"),
    ("weights", lambda t: [w.half() for w in t], TypeError, r"weights\[0\] must be .* got torch.float16"),
    ("weights", lambda t: [t[0], t[1].float()], TypeError, r"weights\[1\] is torch.float32, expected torch.bfloat16"),
    ("weights", lambda t: [t[0], t[1][1:]], ValueError, r"weights\[1\] must be \(3, 4\), got \(2, 4\)"),
    ("weights", lambda t: [w[0] for w in t], ValueError, r"weights\[0\] must be \(h, n\), got \(4,\)"),
    ("weights", lambda t: [t[0].mT.contiguous().mT, t[1]], ValueError, r"weights\[0\] must be contiguous"),
    ("factors", lambda t: t.double(), TypeError, "factors is torch.float64, expected torch.float32"),
    ("factors", lambda t: t[:1], ValueError, r"factors must be \(2, 5, 3\), got \(1, 5, 3\)"),
    ("out", lambda t: t.double(), TypeError, "out must be bfloat16 or float32, got torch.float64"),
    ("out", lambda t: t[0], ValueError, r"out must be \(P, h, n\), got \(3, 4\)"),
    ("out", lambda t: t[..., 1:], ValueError, r"out must be \(5, 3, 4\), got \(5, 3, 3\)"),
    ("out", lambda t: t.to("meta"), ValueError, "out is on meta, expected cpu")])
def test_refuses(name, change, error, message):
    weights = list(torch.ones(2, 3, 4).bfloat16())
    given = {"weights": weights, "factors": torch.ones(2, 5, 3), "out": torch.ones(5, 3, 4)}
    with pytest.raises(error, match=message):
        scaled_weights(**given | {name: change(given[name])})
