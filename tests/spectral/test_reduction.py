"""Properties of the reduction, eqs. (21)-(22)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specxai.spectral import reduce_alphas

finite = st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False)
# Small integers make ties and exact cancellations common.
alphas = st.lists(finite, max_size=60) | st.lists(st.integers(-3, 3).map(float), max_size=60)


@given(alphas)
def test_sum_sign_and_members(alpha):
    r = reduce_alphas(alpha)
    scale = max(map(abs, alpha), default=0.0)
    assert float(r.values.sum()) == pytest.approx(math.fsum(alpha), abs=1e-14 * scale * max(1, len(alpha)))
    assert (r.values * r.sign > 0).all()
    assert sorted(k for group in (*r.members, *r.cancelled) for k in group) == list(range(len(alpha)))
    assert r.values.abs().tolist() == sorted(r.values.abs().tolist(), reverse=True)


@given(alphas)
def test_each_survivor_is_the_sum_of_its_members(alpha):
    r = reduce_alphas(alpha)
    scale = max(map(abs, alpha), default=0.0)
    for value, group in zip(r.values.tolist(), r.members, strict=True):
        assert value == pytest.approx(math.fsum(alpha[k] for k in group), abs=1e-13 * scale * len(alpha))
        assert alpha[group[0]] * r.sign > 0, "the dominant component has the survivor's sign"
    for group in r.cancelled:
        assert math.fsum(alpha[k] for k in group) == pytest.approx(0, abs=1e-13 * scale * len(alpha))


@given(alphas)
def test_shares_are_proportions(alpha):
    shares = reduce_alphas(alpha).shares
    assert (shares >= 0).all()
    if len(shares):
        assert float(shares.sum()) == pytest.approx(1)


@given(alphas)
def test_agrees_with_the_paper_written_out(alpha):
    """(21) with sorted lists, literally."""
    rest = [v for v in alpha if v != 0]
    while any(v > 0 for v in rest) and any(v < 0 for v in rest):
        plus = sorted((v for v in rest if v > 0), reverse=True)
        minus = sorted(v for v in rest if v < 0)
        pairs = min(len(plus), len(minus))
        sums = [p + m for p, m in zip(plus, minus, strict=False)]
        rest = [v for v in sums if v != 0] + plus[pairs:] + minus[pairs:]
    assert reduce_alphas(alpha).values.tolist() == sorted(rest, key=abs, reverse=True)


def test_one_sign_needs_no_round():
    r = reduce_alphas([1.0, 3.0, 2.0])
    assert (r.rounds, r.members, r.sign) == (0, ((1,), (2,), (0,)), 1)


def test_repeats_until_one_sign():
    r = reduce_alphas([10.0, -1.0, -2.0, -3.0])
    assert (r.rounds, r.members, r.cancelled) == (3, ((0, 3, 2, 1),), ())
    assert r.values.tolist() == [4.0]


def test_exact_cancellation_vanishes():
    r = reduce_alphas([2.0, -2.0, 0.0, 1.0])
    assert (r.values.tolist(), r.members, set(r.cancelled)) == ([1.0], ((3,),), {(2,), (0, 1)})


@pytest.mark.parametrize("alpha", [[], [0.0], [1.0, -1.0]])
def test_nothing_left(alpha):
    r = reduce_alphas(alpha)
    assert (len(r), r.sign, r.shares.tolist(), repr(r).startswith("Reduction: 0")) == (0, 0, [], True)


def test_one_large_against_many_small_stays_fast():
    """As many rounds as components: sorting in each would take minutes."""
    r = reduce_alphas(torch.cat([torch.tensor([1e6]), -torch.ones(30_000)]))
    assert (len(r), r.rounds, r.values.tolist()) == (1, 30_000, [970_000.0])


def test_not_finite_is_refused():
    with pytest.raises(ValueError, match="1 of 2 are nan or inf"):
        reduce_alphas([1.0, float("nan")])
