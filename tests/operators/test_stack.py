"""Operators on top of each other and side by side, and those that select."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.errors import StaleError
from specxai.operators import DenseOperator, SelectionOperator, ZeroOperator, hstack, vstack


@pytest.fixture
def matrices(dtype):
    return [torch.randn(m, 5, dtype=dtype) for m in (3, 1, 4)]


def test_stacks_act_as_their_matrices_do(matrices, check_operator):
    check_operator(vstack([DenseOperator(m) for m in matrices]), torch.cat(matrices))
    check_operator(hstack([DenseOperator(m.mT.contiguous()) for m in matrices]), torch.cat(matrices).mT)
    check_operator(vstack([DenseOperator(matrices[0])]), matrices[0])


def test_a_stack_over_inputs_has_the_singular_vectors_of_all(dtype):
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).eval().to(dtype)
    X = torch.randn(6, 1, 8, dtype=dtype)
    J = vstack([specxai.linearize(net, x).jacobian for x in X])
    dense = torch.cat([torch.autograd.functional.jacobian(net, x)[0, :, 0] for x in X]).double()
    found = specxai.svd(J, rank=3, tol=1e-5)
    assert found.converged
    assert ((found.S.double() - torch.linalg.svdvals(dense)[:3]).abs() <= found.residuals).all()


def test_what_a_stack_costs_and_knows(matrices):
    parts = [DenseOperator(m) for m in matrices]
    stack = vstack(parts)
    assert stack.flops == sum(one.flops for one in parts)
    assert stack.column_cost(4) == parts[0].column_cost(4)
    assert stack.own_products
    assert not stack.is_zero
    zeros = vstack([ZeroOperator((5,), (2,)), ZeroOperator((5,), (3,))])
    assert zeros.is_zero
    assert zeros.column_cost(64) == 1


def test_a_stack_is_as_old_as_its_parts(matrices):
    class Ageing(DenseOperator):
        def ensure_current(self):
            raise StaleError("older than its weights")

    with pytest.raises(StaleError):
        vstack([DenseOperator(matrices[0]), Ageing(matrices[1])]).ensure_current()


def test_parts_keep_what_they_return(matrices):
    """A sum of adjoint products is not added onto a product that a part keeps."""
    kept = torch.randn(5, 2, dtype=matrices[0].dtype)

    class Keeping(DenseOperator):
        def _rmatmat(self, Y):
            return kept

    before = kept.clone()
    vstack([Keeping(matrices[0]), DenseOperator(matrices[1])]).rmatmat(torch.ones(4, 2, dtype=kept.dtype))
    assert torch.equal(kept, before)


@pytest.mark.parametrize("kind, parts, words", [
    (ValueError, [], "nothing to stack"),
    (TypeError, [torch.ones(2, 2)], "operators are stacked, got Tensor"),
    (ValueError, [DenseOperator(torch.ones(2, 2)), DenseOperator(torch.ones(2, 3))], "different columns"),
    (ValueError, [DenseOperator(torch.ones(2, 2)), DenseOperator(torch.ones(2, 2).double())], "different dtype"),
])
def test_what_cannot_be_stacked(kind, parts, words):
    with pytest.raises(kind, match=words):
        vstack(parts)
    if kind is TypeError:
        with pytest.raises(kind, match=words):
            hstack(parts)


def test_selections(dtype, check_operator):
    places = torch.tensor([4, 0, 3])
    S = SelectionOperator(places, 6, dtype)
    check_operator(S, torch.eye(6, dtype=dtype)[places])
    R = torch.randn(8, 6, dtype=dtype)
    masked = DenseOperator(R) @ S.T @ S
    keep = torch.zeros(6, dtype=dtype).index_fill_(0, places, 1)
    check_operator(masked, R * keep)
    assert masked.narrowest_cut().width == 3
    assert S.flops == 0
    assert S.own_products


@pytest.mark.parametrize("places, words", [([6], "places 0 to 5"), ([-1], "places 0 to 5"), ([1, 1], "a place twice")])
def test_selections_of_what_is_not_there(places, words):
    with pytest.raises(ValueError, match=words):
        SelectionOperator(torch.tensor(places), 6)


@pytest.mark.parametrize(("given", "words"), [(torch.tensor([0.5]), r"got torch\.float32"), ([0, 1], "got list"),
                                              (torch.tensor([True]), r"\.nonzero\(\)\.flatten\(\) of a mask")])
def test_what_is_selected_is_named_by_integers(given, words):
    with pytest.raises(TypeError, match=words):
        SelectionOperator(given, 3)


def test_a_generator_of_operators_is_stacked():
    assert hstack(DenseOperator(torch.eye(2)) for _ in range(2)).shape == (2, 4)
    with pytest.raises(TypeError, match="given as a list, got NoneType"):
        vstack(None)
