"""The operator contract: products agree with the matrix, however they are asked for."""

from __future__ import annotations

import doctest
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import svds

import specxai
from specxai import _blocks, operators
from specxai.affine.operator import RoughOperator
from specxai.operators import AdjointOperator, ComposedOperator, DenseOperator
from tolerances import assert_close


@pytest.fixture
def pair(dtype):
    matrix = torch.randn(7, 5, dtype=dtype)
    return matrix, DenseOperator(matrix)


def test_dense(pair, check_operator):
    check_operator(pair[1], pair[0])


def test_adjoint(pair, check_operator):
    matrix, operator = pair
    assert isinstance(operator.T, AdjointOperator)
    assert operator.T.T is operator
    assert operator.T.flops == operator.flops == 2 * 7 * 5
    check_operator(operator.T, matrix.mT)


def test_composition(pair, dtype, check_operator):
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
def test_any_size_and_chunk(check_operator, m, n, block, double):
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


@pytest.mark.parametrize(("size", "error"), [
    (0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ("all", TypeError)])
@pytest.mark.parametrize("kind", ["dense", "adjoint", "network", "rough"])
def test_a_block_size_that_is_none(kind, size, error):
    operator = DenseOperator(torch.eye(4))
    if kind == "adjoint":
        operator = operator.T
    elif kind != "dense":
        operator = specxai.linearize(small_net(), torch.randn(1, 2, 6, 6)).jacobian
        operator = operator if kind == "network" else RoughOperator(operator)
    before = operator.block_size
    with pytest.raises(error, match=f"block_size .* or None for all .*; got {re.escape(repr(size))}"):
        operator.block_size = size
    assert operator.block_size == before
    for good in (np.int64(2), torch.tensor(2), 2, None):
        operator.block_size = good
        assert torch.isfinite(operator @ torch.ones(operator.shape[1], 5)).all()


def test_to_dense_in_several_blocks(monkeypatch, dtype):
    monkeypatch.setattr(_blocks, "IDENTITY_BLOCK", 3)
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


def test_scipy_of_what_numpy_has_not():
    matrix = torch.tensor([[1.0, 2.0], [0.0, 3.0], [4.0, 0.5]], dtype=torch.bfloat16)
    wrapped = DenseOperator(matrix).to_scipy()
    assert wrapped.dtype == np.float32
    assert (wrapped @ np.ones(2)).dtype == np.float32
    np.testing.assert_array_equal(wrapped @ np.ones(2), [3, 3, 4.5])
    np.testing.assert_array_equal(wrapped.H @ np.ones((3, 1)), [[5], [5.5]])
    for array in (np.ones(2, ">f8"), np.ones(2, np.longdouble), np.ones(2, bool), np.ones(2, object)):
        np.testing.assert_array_equal(wrapped @ array, [3, 3, 4.5])
    assert (wrapped @ np.ones((2, 0))).shape == (3, 0)
    for array in (np.ones(2, complex), np.ones((2, 3), np.complex64)):
        with pytest.raises(TypeError, match=r"is real and takes no complex\d+ array; apply it to array\.real and to"):
            wrapped @ array


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

    for module in (operators.algebra, operators.base, operators.dense, operators.zero, specxai.svd.solve):
        failed, tried = doctest.testmod(module)
        assert tried > 0
        assert failed == 0


def small_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Softplus(), torch.nn.AvgPool2d(2), torch.nn.Flatten(),
                               torch.nn.Linear(12, 5), torch.nn.Hardtanh()).eval()


def blocks(n: int) -> dict[str, torch.Tensor]:
    """(n, 20) blocks whose memory does not hold their numbers one after the other, as they are, or in peace."""
    generator = torch.Generator().manual_seed(1)
    plain = torch.randn(n, 20, generator=generator)
    with torch.inference_mode():
        inference = plain.clone()
    lazy = torch.complex(plain, -plain).conj().imag
    assert lazy.is_neg()
    return {"negative": lazy, "expanded": plain[:, :1].expand(n, 20), "rows": plain[:1].expand(n, 20),
            "strided": torch.randn(2 * n, 40, generator=generator)[::2, ::2], "transposed": plain.T.contiguous().T,
            "graph": plain.clone().requires_grad_(), "parameter": torch.nn.Parameter(plain), "inference": inference}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", list(blocks(1)))
def test_blocks_of_every_make(backend, name):
    local = specxai.linearize(small_net(), torch.randn(1, 2, 6, 6), backend=backend)
    for operator in (local.jacobian, local.jacobian.T, DenseOperator(local.jacobian.to_dense())):
        block = blocks(operator.shape[1])[name]
        before = block.detach().clone()
        expected = operator.to_dense() @ before.resolve_neg()
        for one, wanted in ((block, expected), (block[:, 3], expected[:, 3])):
            found = operator @ one
            assert torch.allclose(found, wanted, atol=1e-5)
            assert not found.requires_grad
        if operator.own_products:
            found = operator @ block
            found.zero_()
            assert torch.equal(block.detach(), before)


def test_products_of_an_identity_are_new():
    local = specxai.linearize(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Flatten()).eval(), torch.randn(1, 4))
    for k in (1, 20):
        block = torch.randn(4, k)
        for product in (local.jacobian @ block, local.jacobian.T @ block):
            assert torch.equal(product, block)
            assert product.untyped_storage().data_ptr() != block.untyped_storage().data_ptr()


def test_vectors_have_a_shape():
    R, S = DenseOperator(torch.zeros(2, 5)), DenseOperator(torch.zeros(3, 2))
    assert (R.input_shape, R.output_shape, R.T.input_shape, R.T.output_shape) == ((5,), (2,), (2,), (5,))
    assert ((S @ R).input_shape, (S @ R).output_shape) == ((5,), (3,))


@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
def test_parts_of_a_step_have_no_shape_of_its_own(backend):
    """The halves of a cut meet in live units, and two steps are no image."""
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(2, 9, 3)).eval()
    local = specxai.linearize(net, torch.randn(1, 1, 7, 7), backend=backend)
    J = local.jacobian
    cut = J.narrowest_cut()
    assert (cut.right.input_shape, cut.right.output_shape) == (J.input_shape, (cut.width,))
    assert (cut.left.input_shape, cut.left.output_shape) == ((cut.width,), J.output_shape)
    assert (cut.left.T.output_shape, (cut.left @ cut.right).output_shape) == ((cut.width,), J.output_shape)
    first = local.captured.program.layer("0")[1]
    both = local.operator([local.graph.input, first], [first])
    assert (both.input_shape, both.output_shape) == ((49 + 18,), (1, 2, 3, 3))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_inference_mode_outside_and_inside(backend):
    x, model = torch.randn(1, 2, 6, 6), small_net()
    captured = specxai.capture(model, x)
    local = captured.linearize(x, backend=backend)
    dense = local.jacobian.to_dense()
    assert float(dense.norm()) > 0.01
    for made_inside in (False, True):
        with torch.inference_mode(made_inside):
            inner = captured.linearize(x.clone(), backend=backend)
        for used_inside in (False, True):
            with torch.inference_mode(used_inside):
                for operator in (local.jacobian, inner.jacobian):
                    assert torch.allclose(operator @ torch.eye(72), dense, atol=1e-6)
                    assert torch.allclose((operator.T @ torch.eye(5)).T, dense, atol=1e-6)
                    assert torch.allclose(specxai.svd(operator).S, torch.linalg.svdvals(dense), atol=1e-5)
                assert inner.exactness < 1e-5
                assert specxai.explain(inner, layer="1", rank=None).completeness < 1e-4


@pytest.mark.parametrize("setting", ["float64", "meta"])
def test_defaults_of_dtype_and_device_do_not_matter(setting):
    x, model = torch.randn(1, 2, 6, 6), small_net()
    captured = specxai.capture(model, x)

    def found():
        local = captured.linearize(x)
        J = local.jacobian
        eye = torch.eye(72, dtype=torch.float32, device="cpu")
        svd = specxai.svd(local.split("1").right, rank=2, method="exact")
        return J @ eye, J.T @ (J @ eye), local.bias, svd.S, svd.V, local.run_tail("1", local.split("1").value)

    expected = found()
    try:
        if setting == "float64":
            torch.set_default_dtype(torch.float64)
        else:
            torch.set_default_device("meta")
        changed = found()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for mine, theirs in zip(changed, expected, strict=True):
        assert mine.device.type == "cpu"
        assert torch.equal(mine, theirs)


def test_a_layer_of_no_units():
    model = torch.nn.Sequential(torch.nn.Linear(6, 0), torch.nn.ReLU(), torch.nn.Linear(0, 3)).eval()
    local = specxai.linearize(model, torch.randn(1, 6), backend="native")
    for k in (1, 20):
        assert not (local.jacobian @ torch.randn(6, k)).any()
        assert not (local.jacobian.T @ torch.randn(3, k)).any()
    assert torch.allclose(local.bias.flatten(), model[2].bias)
