"""Operators add, subtract, scale and compose as their matrices do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import specxai
from random_nets import random_net
from specxai.errors import StaleError
from specxai.operators import ComposedOperator, DenseOperator, LinearOperator, ScaledOperator, SumOperator, ZeroOperator
from tolerances import RELATIVE, assert_close


class Costly(DenseOperator):
    """States a cost, a shape of its vectors, a cut, rough products, and that its products are new."""

    input_shape, output_shape, own_products = torch.Size([1, 5]), torch.Size([1, 7]), True

    def column_cost(self, columns):
        return 3.0

    def narrowest_cut(self):
        return ComposedOperator(DenseOperator(self.matrix[:, :2]), DenseOperator(self.matrix[:2, :])).narrowest_cut()

    def rough(self):
        return DenseOperator(self.matrix.round(decimals=2))


class Ageing(DenseOperator):
    def ensure_current(self):
        raise StaleError("older than its weights")


@pytest.fixture
def matrices(dtype):
    return torch.randn(7, 5, dtype=dtype), torch.randn(7, 5, dtype=dtype)


def test_sums_and_multiples(matrices, check_operator):
    a, b = matrices
    A, B = map(DenseOperator, matrices)
    cases = [(A + B, a + b), (A - B, a - b), (-A, -a), (2 * A, 2 * a), (A * 0.5, a / 2), (A / 4, a / 4),
             (torch.tensor(3.0, requires_grad=True) * A, 3 * a), (A * np.float32(0.25), a / 4),
             (np.int64(3) * A, 3 * a), (A / np.array(8.0), a / 8), (0 * A, 0 * a), (sum([A, B, A]), 2 * a + b),
             (2 * (A - B / 3) - -(A + A), 4 * a - 2 * b / 3), ((A + B).T @ A - 2 * B.T @ (B - A),
                                                              (a + b).T @ a - 2 * b.T @ (b - a))]
    for operator, matrix in cases:
        check_operator(operator, matrix, factor=4)
        check_operator(operator.T, matrix.mT, factor=4)
        assert operator.T.T is operator
        np.testing.assert_allclose(operator.to_scipy() @ np.eye(5), matrix.numpy(), rtol=1e-3, atol=1e-4)


def trees(matrices: list[torch.Tensor]) -> st.SearchStrategy:
    """(operator, matrix) of random expressions in square matrices."""
    leaves = st.sampled_from([(DenseOperator(m, block_size=1 + i), m) for i, m in enumerate(matrices)])
    scalars = st.integers(-3, 3).map(lambda i: i / 2)
    return st.recursive(leaves, lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: (p[0][0] + p[1][0], p[0][1] + p[1][1])),
        st.tuples(inner, inner).map(lambda p: (p[0][0] - p[1][0], p[0][1] - p[1][1])),
        st.tuples(inner, inner).map(lambda p: (p[0][0] @ p[1][0], p[0][1] @ p[1][1])),
        st.tuples(scalars, inner).map(lambda p: (p[0] * p[1][0], p[0] * p[1][1])),
        inner.map(lambda p: (p[0].T, p[1].mT))), max_leaves=6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_expression(data):
    generator = torch.Generator().manual_seed(3)
    leaves = [torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    operator, matrix = data.draw(trees(leaves))
    size = math.prod(max(1.0, float(leaf.norm())) for leaf in leaves) ** 2  # of what may cancel on the way
    assert float((operator.to_dense() - matrix).abs().max()) <= RELATIVE[torch.float64] * size
    assert float((operator.T.to_dense() - matrix.mT).abs().max()) <= RELATIVE[torch.float64] * size


def test_what_they_cost(matrices):
    cheap, costly = DenseOperator(matrices[0]), Costly(matrices[1])
    assert (cheap + costly).flops == cheap.flops + costly.flops + 7
    assert (2 * cheap).flops == cheap.flops + 7
    assert (cheap + costly).column_cost(100) == pytest.approx((1 + 3) / 2)
    assert (cheap.T @ costly).column_cost(100) == pytest.approx((1 + 3) / 2)
    assert (2 * costly).column_cost(100) == 3
    empty = DenseOperator(torch.zeros(0, 3))
    assert (empty @ empty.T).column_cost(100) == 1


def test_what_they_know(matrices):
    plain, known = DenseOperator(matrices[0]), Costly(matrices[1])
    for total in (plain + known, known + plain, 2 * known, known - plain):
        assert (total.input_shape, total.output_shape) == ((1, 5), (1, 7))
    scaled = -2 * known
    cut = scaled.narrowest_cut()
    assert cut.width == 2
    assert_close(cut.left.to_dense() @ cut.right.to_dense(), -2 * known.narrowest_cut().left.to_dense()
                 @ known.narrowest_cut().right.to_dense())
    assert_close(scaled.rough().to_dense(), -2 * matrices[1].round(decimals=2))
    assert_close(scaled.T.rough().to_dense(), -2 * matrices[1].round(decimals=2).mT)
    assert (2 * plain).narrowest_cut() is (2 * plain).rough() is plain.T.rough() is None
    assert (known + known).narrowest_cut() is (known + known).rough() is None
    assert repr(scaled).startswith("-2 * Costly(7 x 5,")
    assert repr(plain + known).startswith("SumOperator(7 x 5,")


@pytest.mark.parametrize("make", [lambda A, B: A + B, lambda A, B: B + A, lambda A, B: 2 * B, lambda A, B: (A - B).T,
                                  lambda A, B: A @ B.T])
def test_they_are_as_old_as_what_they_are_made_of(make, matrices):
    A, B = DenseOperator(matrices[0]), Ageing(matrices[1])
    make(A, A).ensure_current()
    with pytest.raises(StaleError, match="older than its weights"):
        make(A, B).ensure_current()
    with pytest.raises(StaleError):
        specxai.svd(make(A, B))


@pytest.mark.parametrize("kind", [DenseOperator, Costly])
def test_products_are_the_callers_own(kind):
    """Nothing is added onto a product that someone else keeps, nor onto the block."""
    kept = torch.randn(4, 3)

    class Keeping(kind):
        def _matmat(self, X):
            return kept if kind is DenseOperator else super()._matmat(X)

    A, block = Keeping(torch.randn(4, 4)), torch.randn(4, 3)
    before = kept.clone(), block.clone()
    for operator in (A + A, 3 * A, A - 2 * A):
        assert operator.own_products
        (operator @ block).zero_()
    assert torch.equal(kept, before[0])
    assert torch.equal(block, before[1])


def test_zero(check_operator, dtype):
    zero, A = ZeroOperator((1, 5), (7, 1), dtype), DenseOperator(torch.randn(7, 5, dtype=dtype))
    check_operator(zero, torch.zeros(7, 5, dtype=dtype))
    assert (zero.input_shape, zero.output_shape, zero.flops) == ((1, 5), (7, 1), 0)
    for same in (A + zero, zero + A, A - zero, A + 0 * A, A + zero.T.T, A + A @ ZeroOperator((5,), (5,), dtype)):
        assert same is A
    assert all(operator.is_zero for operator in (zero, zero.T, zero + zero, 2 * zero, 0 * A))
    assert not any(operator.is_zero for operator in (A, A - A, 2 * A))
    assert specxai.svd(zero).rank == 0
    with pytest.raises(ValueError, match="cannot add"):
        A + ZeroOperator((7,), (5,), dtype)


@pytest.mark.parametrize("method", ["exact", "krylov", "subspace"])
@pytest.mark.parametrize("wide", [False, True])
def test_svd(method, wide, dtype):
    torch.manual_seed(0)
    a, b = torch.randn(2, 60, 40, dtype=dtype)
    A, B = DenseOperator(a), DenseOperator(b)
    cases = [(A + B, a + b), (A - 1e-3 * B, a - 1e-3 * b), (-1e-8 * A, -1e-8 * a),
             (A / 3 + A @ (A.T @ B), a / 3 + a @ (a.T @ b))]
    for operator, matrix in cases:
        operator, matrix = (operator.T, matrix.mT) if wide else (operator, matrix)
        found = specxai.svd(operator, rank=5, tol=1e-6, method=method)
        values = torch.linalg.svdvals(matrix.double())
        assert found.converged
        assert bool(((found.S - values[:5]).abs() <= found.residuals).all())
        error = float(torch.linalg.norm(matrix.double() - (found.U * found.S).double() @ found.V.double().mT))
        assert error <= found.error


def test_a_sum_that_cancels_is_decomposed():
    """The change of a Jacobian by one step of training, say: small beside its terms, and rough products beside that."""
    torch.manual_seed(0)
    nets = [torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.ReLU(), torch.nn.Linear(200, 100)).eval()
            for _ in range(2)]
    nets[1].load_state_dict({k: v + 1e-3 * torch.randn_like(v) for k, v in nets[0].state_dict().items()})
    x = torch.randn(1, 300)
    J, K = (specxai.linearize(net, x).jacobian for net in nets)
    wanted = torch.linalg.svdvals((K.to_dense() - J.to_dense()).double())
    found = specxai.svd(K - J, rank=5, method="krylov")
    assert found.converged
    assert_close(found.S, wanted[:5], factor=50)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), backend=st.sampled_from(["native", "reference"]), data=st.data())
def test_the_parts_of_a_split_add_up(seed, backend, data):
    model, x = random_net(seed, torch.float64)
    local = specxai.linearize(model, x, backend=backend)
    s = local.split(data.draw(st.sampled_from(local.layers)))
    wanted = local.jacobian.to_dense()
    assume(bool(wanted.any()))
    J = s.left @ s.right + s.bypass
    size = s.left.to_dense().norm() * s.right.to_dense().norm() + s.bypass.to_dense().norm()
    assert (J.to_dense() - wanted).norm() <= RELATIVE[torch.float64] * size
    assert (J.T.to_dense() - wanted.mT).norm() <= RELATIVE[torch.float64] * size
    assert (J.input_shape, J.output_shape) == (x.shape, local.output.shape)
    assert isinstance(J, SumOperator) != s.bypass.is_zero


def small(*shape: int, dtype=torch.float32) -> LinearOperator:
    return DenseOperator(torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda A: A * 1j, TypeError, "real number, got 1j; give an int or a float"),
    (lambda A: A * True, TypeError, "real number, got True"),
    (lambda A: torch.tensor(True) * A, TypeError, "real number"),
    (lambda A: A * torch.tensor(1j), TypeError, "real number"),
    (lambda A: A * torch.ones(3), TypeError, r"got Tensor of shape \(3,\); take a number out of it by .item()"),
    (lambda A: np.ones((2, 2)) * A, TypeError, r"got ndarray of shape \(2, 2\)"),
    (lambda A: A * A, TypeError, "composed by @"),
    (lambda A: A / A, TypeError, "composed by @"),
    (lambda A: 2 / A, TypeError, "unsupported operand"),
    (lambda A: A * "2", TypeError, None),
    (lambda A: A + 1, TypeError, "unsupported operand"),
    (lambda A: A + None, TypeError, "got None; leave out a term"),
    (lambda A: A + torch.ones(2, 3), TypeError, "wrap a matrix as DenseOperator"),
    (lambda A: np.ones((2, 3)) + A, TypeError, "wrap a matrix as DenseOperator"),
    (lambda A: A - torch.ones(2, 3), TypeError, "wrap a matrix as DenseOperator"),
    (lambda A: A / 0, ZeroDivisionError, "divided by zero"),
    (lambda A: A * math.nan, ValueError, "no finite number of torch.float32"),
    (lambda A: A * -10**400, ValueError, "by -inf"),
    (lambda A: A * 1e39, ValueError, "cast the model or matrix to float64"),
    (lambda A: A * 1e-60, ValueError, "rounds to zero"),
    (lambda A: A + A.T, ValueError, "both must map 3 numbers to 2, or both 2 to 3"),
    (lambda A: A + small(2, 3, dtype=torch.float64), ValueError, "dtype and device must be the same"),
    (lambda A: A - ZeroOperator((3,), (2,), device="meta"), ValueError, "dtype and device must be the same"),
    (lambda A: ScaledOperator(2.0, A, block_size=0), ValueError, "block_size"),
])
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call(small(2, 3))
