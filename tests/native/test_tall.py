"""Tall blocks: the compiled kernels against torch in double precision, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from specxai import native

pytestmark = pytest.mark.skipif(not native.available()[0], reason=f"no compiled kernels: {native.available()[1]}")
LEVELS = native.supported_levels() if native.available()[0] else []


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("m, b, c", [(1000, 7, 0), (333, 64, 0), (100, 65, 13), (1, 1, 1), (0, 3, 2), (50, 0, 4)])
def test_gram(dtype, level, m, b, c):
    X = torch.randn(m, b, dtype=dtype)
    Y = torch.randn(m, c, dtype=dtype) if c else None
    want = X.double().mT @ (X if Y is None else Y).double()
    torch.testing.assert_close(native.gram(X, Y, level=level), want, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("c", [3, 9, 20])
def test_gram_of_two_that_begin_alike(c, level, dtype):
    """One memory seen with rows of two lengths is not one matrix."""
    memory = torch.randn(40, 20, dtype=dtype)
    X, Y = memory.flatten()[:40 * 9].view(40, 9), memory.flatten()[:40 * c].view(40, c)
    torch.testing.assert_close(native.gram(X, Y, level=level), X.double().mT @ Y.double(), rtol=1e-13, atol=1e-12)


def test_gram_refuses():
    with pytest.raises(ValueError, match="X must be a contiguous matrix"):
        native.gram(torch.zeros(4, 3).T)
    with pytest.raises(ValueError, match="one number of rows"):
        native.gram(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="one dtype is needed: X is"):
        native.gram(torch.zeros(4, 3), torch.zeros(4, 3).double())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("m, q, b", [(5000, 13, 4), (2077, 40, 1), (333, 5, 16), (70, 7, 9), (3, 1, 2), (0, 4, 2),
                                     (50, 0, 4), (50, 3, 0)])
def test_coefficients_and_what_is_left(dtype, level, m, q, b):
    basis, X = torch.randn(q, m, dtype=dtype), torch.randn(m, b, dtype=dtype)
    H = native.coefficients(basis, X, level=level)
    size = basis.double().abs() @ X.double().abs() + 1
    eps = torch.finfo(dtype).eps
    assert ((H - basis.double() @ X.double()).abs() <= 4 * eps * size).all()
    left = native.subtract(basis, H, X, level=level)
    want = X.double() - basis.double().T @ H.to(dtype).double()
    assert ((left - want).abs() <= (q + 2) * eps * (X.double().abs() + basis.double().abs().T @ H.abs() + 1)).all()
    before = X.clone()
    assert native.subtract(basis, H, X, out=X, level=level) is X
    assert torch.equal(X, left), "in place"
    assert m * q * b == 0 or not torch.equal(X, before)


def test_threads_do_not_change_a_bit(dtype):
    basis, X, found = torch.randn(21, 9001, dtype=dtype), torch.randn(9001, 5, dtype=dtype), []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        H = native.coefficients(basis, X)
        found.append((H, native.subtract(basis, H, X)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("change, message", [
    ({"basis": torch.zeros(2, 3)}, "basis vectors have 3 numbers, X has 4 rows"),
    ({"basis": torch.zeros(4, 2).T}, "basis must be a contiguous matrix"),
    ({"X": torch.zeros(4, 3).double()}, "one dtype is needed: basis is"),
    ({"H": torch.zeros(2, 3)}, r"H must be contiguous float64 on the CPU, \(2, 3\); got torch.float32"),
    ({"H": torch.zeros(3, 2).double()}, "H must be contiguous float64"),
    ({"out": torch.zeros(3, 3)}, r"out has shape \(3, 3\), X has \(4, 3\)"),
])
def test_refuses(change, message):
    arguments = {"basis": torch.zeros(2, 4), "H": torch.zeros(2, 3).double(), "X": torch.zeros(4, 3)} | change
    with pytest.raises(ValueError, match=message):
        native.subtract(**arguments)
