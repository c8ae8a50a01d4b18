"""The operator contract: products agree with the matrix, however they are asked for."""

from __future__ import annotations

import doctest
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import svds

from specxai import operators
from specxai.operators import AdjointOperator, ComposedOperator, DenseOperator, LinearOperator
from tolerances import RELATIVE, assert_close


@pytest.fixture
def pair(dtype):
    matrix = torch.randn(7, 5, dtype=dtype)
    return matrix, DenseOperator(matrix)


def check_operator(operator: LinearOperator, matrix: torch.Tensor) -> None:
    """`operator` acts as `matrix` does, in every way of asking."""
    m, n = matrix.shape
    assert operator.shape == (m, n)
    assert_close(operator.to_dense(), matrix)
    assert_close(operator.T.to_dense(), matrix.mT)
    for k in (0, 1, 4):
        X, Y = torch.randn(n, k, dtype=matrix.dtype), torch.randn(m, k, dtype=matrix.dtype)
        assert_close(operator @ X, matrix @ X)
        assert_close(operator.rmatmat(Y), matrix.mT @ Y)
        assert_close(operator.T @ Y, matrix.mT @ Y)
    x, y = torch.randn(n, dtype=matrix.dtype), torch.randn(m, dtype=matrix.dtype)
    assert (operator @ x).shape == (m,)
    assert (operator.rmatvec(y)).shape == (n,)
    scale = float(torch.linalg.norm(matrix) * torch.linalg.norm(x) * torch.linalg.norm(y))
    assert abs(float((operator @ x) @ y) - float(x @ (operator.T @ y))) <= RELATIVE[matrix.dtype] * max(scale, 1e-30)


def test_dense(pair):
    check_operator(pair[1], pair[0])


def test_adjoint(pair):
    matrix, operator = pair
    assert isinstance(operator.T, AdjointOperator)
    assert operator.T.T is operator
    assert operator.T.flops == operator.flops == 2 * 7 * 5
    check_operator(operator.T, matrix.mT)


def test_composition(pair, dtype):
    matrix, operator = pair
    other = torch.randn(5, 9, dtype=dtype)
    composed = operator @ DenseOperator(other)
    assert isinstance(composed, ComposedOperator)
    assert composed.flops == 2 * (7 * 5 + 5 * 9)
    check_operator(composed, matrix @ other)


def test_narrowest_cut_of_a_chain(dtype):
    sizes = [9, 6, 3, 7, 8]
    matrices = [torch.randn(a, b, dtype=dtype) for a, b in pairwise(sizes)]
    A, B, C, D = map(DenseOperator, matrices)
    assert A.narrowest_cut() is None
    assert A.T.narrowest_cut() is None
    for chain in (A @ B @ C @ D, A @ (B @ (C @ D)), (A @ B) @ (C @ D), (A @ (B @ C)) @ D):
        for operator in (chain, chain.T.T, chain.T):
            cut = operator.narrowest_cut()
            assert cut.width == 3 == cut.left.shape[1] == cut.right.shape[0]
            assert_close(cut.left.to_dense() @ cut.right.to_dense(), operator.to_dense(), factor=4)


@settings(max_examples=50, deadline=None)
@given(m=st.integers(0, 9), n=st.integers(0, 9), block=st.none() | st.integers(1, 5), double=st.booleans())
def test_any_size_and_chunk(m, n, block, double):
    dtype = torch.float64 if double else torch.float32
    matrix = torch.randn(m, n, dtype=dtype)
    check_operator(DenseOperator(matrix, block_size=block), matrix)
    check_operator(DenseOperator(matrix, block_size=block).T, matrix.mT)


def test_chunks_are_no_wider_than_asked(dtype):
    widths = []

    class Recording(DenseOperator):
        def _matmat(self, X):
            widths.append(X.shape[1])
            return super()._matmat(X)

    operator = Recording(torch.eye(5, dtype=dtype), block_size=2)
    block = torch.randn(5, 5, dtype=dtype)
    assert torch.equal(operator @ block, block)
    assert torch.equal(operator.T.rmatmat(block), block)
    assert widths == [2, 2, 1] * 2


def test_block_size_set_later_reaches_the_adjoint():
    operator = DenseOperator(torch.eye(4))
    adjoint = operator.T
    operator.block_size = 1
    assert torch.equal(adjoint @ torch.eye(4), torch.eye(4))


def test_to_dense_in_several_blocks(monkeypatch, dtype):
    monkeypatch.setattr(operators, "IDENTITY_BLOCK", 3)
    for shape in ((7, 11), (11, 7)):
        matrix = torch.randn(shape, dtype=dtype)
        assert_close(DenseOperator(matrix).to_dense(), matrix)


def test_scipy(dtype):
    matrix = torch.randn(30, 20, dtype=dtype)
    wrapped = DenseOperator(matrix).to_scipy()
    assert wrapped.shape == (30, 20)
    assert wrapped.dtype == matrix.numpy().dtype
    rng = np.random.default_rng(0)
    for shape in ((20,), (20, 1), (20, 3)):
        x = rng.standard_normal(shape)
        assert (wrapped @ x).shape == (30, *shape[1:])
        np.testing.assert_allclose(wrapped @ x, matrix.numpy() @ x, rtol=1e-3, atol=1e-4)
    values = np.sort(svds(wrapped, k=4, return_singular_vectors=False))[::-1]
    np.testing.assert_allclose(values, torch.linalg.svdvals(matrix)[:4].numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda A: A @ torch.zeros(7), r"must have shape \(5,\), got \(7,\)"),
        (lambda A: A.matmat(torch.zeros(5)), r"\(5, k\), got \(5,\)"),
        (lambda A: A.rmatmat(torch.zeros(5, 2)), r"\(7, k\), got \(5, 2\)"),
        (lambda A: A @ torch.zeros(5, dtype=torch.float64), "float64 but"),
        (lambda A: A @ torch.zeros(5, device="meta"), "on meta but"),
        (lambda A: A @ DenseOperator(torch.zeros(4, 2)), "inner sizes 5 != 4"),
        (lambda A: A @ DenseOperator(torch.zeros(5, 2, dtype=torch.float64)), "dtype and device"),
        (lambda A: DenseOperator(torch.zeros(5)), "matrix"),
        (lambda A: DenseOperator(torch.zeros(5, 2, dtype=torch.int64)), "real floating dtype"),
        (lambda A: DenseOperator(torch.zeros(5, 2), block_size=0), "block_size"),
    ],
)
def test_messages_name_the_values(call, message):
    with pytest.raises(ValueError, match=message):
        call(DenseOperator(torch.zeros(7, 5)))


def test_other_operands():
    with pytest.raises(TypeError):
        DenseOperator(torch.eye(2)) @ 3.0
    with pytest.raises(TypeError, match="torch tensor"):
        DenseOperator(torch.eye(2)).matvec([1.0, 2.0])


def test_documented_examples():
    import specxai.svd.solve

    for module in (operators, specxai.svd.solve):
        failed, tried = doctest.testmod(module)
        assert tried > 0
        assert failed == 0
