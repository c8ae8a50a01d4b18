"""The compiled stage against dense float64 algebra, at every instruction set that this CPU has."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specxai import native
from tolerances import assert_close

LEVELS = native.supported_levels() if native.available()[0] else ["missing"]


def reference(W, Z, rows=None, cols=None, scale=None, transpose=False):
    """W' Z or W'ᵀ Z by dense float64 masks."""
    live = W.double()
    if rows is not None:
        live = live[rows]
    if cols is not None:
        live = live[:, cols]
    if scale is not None:
        live = torch.diag(scale.double()) @ live
    return (live.mT if transpose else live) @ Z.double()


def half(n: int) -> torch.Tensor:
    """Indices of about half of n units, sorted."""
    return torch.rand(n).lt(0.5).nonzero()[:, 0]


def test_module_is_installed():
    ok, reason = native.available()
    assert ok, reason
    assert native.simd_level() in LEVELS


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("transpose", [False, True], ids=["map", "adjoint"])
@pytest.mark.parametrize(
    "m, n, k",
    [
        (1, 1, 1),
        (63, 65, 64),
        (65, 63, 33),
        (1, 1000, 1),
        (1000, 1, 17),
        (12, 257, 32),
        (13, 1000, 63),
        (100, 300, 300),
    ],
)
def test_equals_dense(m, n, k, transpose, level, dtype):
    W = torch.randn(m, n, dtype=dtype)
    Z = torch.randn(m if transpose else n, k, dtype=dtype)
    assert_close(native.gated_linear(W, Z, transpose=transpose, level=level), reference(W, Z, transpose=transpose))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("transpose", [False, True], ids=["map", "adjoint"])
@pytest.mark.parametrize("k", [1, 64, 65])
def test_live_units_and_gates(k, transpose, level, dtype):
    W = torch.randn(131, 1000, dtype=dtype)
    rows, cols = half(131), half(1000)
    scale = torch.randn(len(rows), dtype=dtype)
    Z = torch.randn(len(rows) if transpose else len(cols), k, dtype=dtype)
    arguments = {"rows": rows, "cols": cols, "scale": scale, "transpose": transpose}
    assert_close(native.gated_linear(W, Z, **arguments, level=level), reference(W, Z, **arguments))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("transpose", [False, True], ids=["map", "adjoint"])
@pytest.mark.parametrize("n_rows, n_cols, k", [(0, 5, 3), (5, 0, 3), (5, 4, 0), (0, 0, 0)])
def test_empty(n_rows, n_cols, k, transpose, level, dtype):
    W = torch.randn(7, 9, dtype=dtype)
    Z = torch.randn(n_rows if transpose else n_cols, k, dtype=dtype)
    Y = native.gated_linear(
        W, Z, rows=torch.arange(n_rows), cols=torch.arange(n_cols), transpose=transpose, level=level
    )
    assert torch.equal(Y, torch.zeros(n_cols if transpose else n_rows, k, dtype=dtype))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("transpose", [False, True], ids=["map", "adjoint"])
def test_all_gates_dead(transpose, level, dtype):
    W = torch.randn(20, 30, dtype=dtype)
    Z = torch.randn(20 if transpose else 30, 64, dtype=dtype)
    Y = native.gated_linear(W, Z, scale=torch.zeros(20, dtype=dtype), transpose=transpose, level=level)
    assert torch.count_nonzero(Y) == 0


@settings(max_examples=60, deadline=None)
@given(data=st.data(), m=st.integers(1, 40), n=st.integers(1, 300), k=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_random_subsets_and_adjoint(data, m, n, k, seed):
    """Each level equals the dense algebra on any live units, and ⟨W'z, u⟩ = ⟨z, W'ᵀu⟩."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor(sorted(data.draw(st.sets(st.integers(0, m - 1)))), dtype=torch.int64)
    cols = torch.rand(n, generator=generator).lt(0.6).nonzero()[:, 0]
    W = torch.randn(m, n, dtype=torch.float64, generator=generator)
    scale = torch.randn(len(rows), dtype=torch.float64, generator=generator)
    Z = torch.randn(len(cols), k, dtype=torch.float64, generator=generator)
    U = torch.randn(len(rows), k, dtype=torch.float64, generator=generator)
    live = {"rows": rows, "cols": cols, "scale": scale}
    for level in LEVELS:
        Y = native.gated_linear(W, Z, **live, level=level)
        V = native.gated_linear(W, U, **live, transpose=True, level=level)
        assert_close(Y, reference(W, Z, **live), factor=10)
        assert_close(V, reference(W, U, **live, transpose=True), factor=10)
        size = (Y.abs() * U.abs()).sum() + (Z.abs() * V.abs()).sum()
        assert abs((Y * U).sum() - (Z * V).sum()) <= 1e-13 * size + 1e-300


@pytest.mark.parametrize("level", LEVELS)
def test_bits_do_not_depend_on_threads_or_other_rows(level, dtype):
    W, Z = torch.randn(301, 700, dtype=dtype), torch.randn(700, 70, dtype=dtype)
    two = native.gated_linear(W, Z, level=level)
    torch.set_num_threads(1)
    assert torch.equal(native.gated_linear(W, Z, level=level), two)
    rows = half(301)
    assert torch.equal(native.gated_linear(W, Z, rows=rows, level=level), two[rows])
