"""Contraction (23) and the symbolic form (25)-(26)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specxai.spectral import contract, explain


@given(dims=st.sets(st.integers(-3, 2)).map(lambda s: tuple({d % 3 for d in s})))
@settings(deadline=None)
def test_contraction_adds_up_to_the_projection(dims, dense_net):
    e = explain(dense_net(), layer="relu", target=1, rank=None)
    c = e.contract(dims)
    assert c.shape == (len(e), *(n for d, n in enumerate((3, 4, 5)) if d not in dims))
    torch.testing.assert_close(c.flatten(1).sum(1) if c.ndim > 1 else c, e.projections)
    written_out = e.right_vectors * e.x
    torch.testing.assert_close(c, written_out.sum([d + 1 for d in dims]) if dims else written_out)


def test_contraction_in_chunks(monkeypatch, exact):
    whole = exact.contract()
    monkeypatch.setattr("specxai.spectral.contraction._CHUNK", 100)
    assert torch.equal(exact.contract(), whole)


@pytest.mark.parametrize("dim", [3, -4, (0, 0), (0, -3), 0.5, (True,)])
def test_contraction_errors(exact, dim):
    with pytest.raises((ValueError, TypeError)):
        exact.contract(dim)


def test_contract_keeps_the_dtype():
    assert contract(torch.ones(2, 3, 4), torch.ones(3, 4)).dtype == torch.float32


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("top", [None, 2, 0])
def test_evaluate_is_the_affine_map(rank, reduced, top, dense_net):
    net = dense_net()
    s = explain(net, layer="relu", target=1, rank=rank).symbolic(reduced=reduced, top=top)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        other = torch.randn(net.input.shape, generator=generator, dtype=torch.float64)
        affine = float((net.jacobian.matvec(other.flatten()))[1] + net.bias[0, 1])
        assert s.evaluate(other) == pytest.approx(affine, abs=1e-12)
        assert s.evaluate(other[0]) == s.evaluate(other)
        values = s.terms(other)
        assert float(values["terms"].sum()) + values["bias"] + values["bypass"] + values["remainder"] == \
            pytest.approx(affine, abs=1e-12)
    near = net.input * (1 + 1e-6)
    assert s.evaluate(near) == pytest.approx(float(net(near)[0, 1]), abs=1e-12)


@pytest.mark.parametrize("reduced", [False, True])
def test_terms_at_x_are_the_coefficients(truncated, reduced):
    s = truncated.symbolic(reduced=reduced)
    values = s.terms(truncated.x)
    torch.testing.assert_close(values["terms"], s.coefficients)
    assert values["remainder"] == pytest.approx(s.remainder)
    assert values["bypass"] == pytest.approx(truncated.bypass)


@pytest.mark.parametrize(("dim", "shape"), [(0, (4, 5)), ((1, 2), (3,)), ((), (3, 4, 5)), ((0, 1, 2), ())])
@pytest.mark.parametrize("reduced", [False, True])
def test_maps_add_up(truncated, dim, shape, reduced):
    s = truncated.symbolic(dim=dim, reduced=reduced)
    assert s.maps.shape == (len(s.groups), *shape)
    torch.testing.assert_close(s.maps.reshape(len(s.groups), -1).sum(1), s.coefficients)
    assert s.output_map().shape == shape
    assert float(s.output_map().sum()) == pytest.approx(truncated.output)


def test_maps_are_the_paper_s(exact):
    """ψλc^k = α_k ĉ^k wherever (26) can be divided."""
    s = exact.symbolic()
    c = exact.contract()
    for term, (k,) in zip(s.maps, s.groups, strict=True):
        if float(c[k].sum()) > 1e-3:
            torch.testing.assert_close(term, exact.alpha[k] * c[k] / c[k].sum())


def test_reduced_coefficients_have_one_sign(exact):
    s = exact.symbolic(reduced=True)
    torch.testing.assert_close(s.coefficients, exact.reduce().values)
    assert len({float(v) > 0 for v in s.coefficients}) == 1


def test_text_shows_every_term(truncated):
    for reduced in (False, True):
        s = truncated.symbolic(reduced=reduced, top=1)
        for text in (s.text(), s.text("function"), repr(s), s.latex(), s.latex("function")):
            assert all(word in text for word in ("output", "[1]", "bias", "bypass", "remainder"))
        assert s.latex().count("{") == s.latex().count("}")
        assert s.latex("function").count("{") == s.latex("function").count("}")
    text = truncated.symbolic().text(digits=3)
    first = truncated.top(1, by="alpha")[0]
    assert f"{abs(float(truncated.alpha[first])):.3g} ĉ_{{{first}}}" in text
    with pytest.raises(ValueError, match="form='beta'"):
        truncated.symbolic().text("beta")


def test_text_of_a_slice_names_places_in_the_spectrum(exact):
    assert "ĉ_{7}" in exact[[7]].symbolic().text()


def test_symbolic_errors(exact):
    with pytest.raises(ValueError, match="top=-1"):
        exact.symbolic(top=-1)
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        exact.symbolic().evaluate(torch.ones(2, 2))
