"""What `specxai.svd` promises beyond numbers: counts, seeds, messages, streams, edges."""

from __future__ import annotations

import inspect
import io
import sys

import pytest
import torch

import specxai
from specxai.operators import DenseOperator
from specxai.svd import SVDResult, svd
from specxai.svd.exact import SAMPLED


def test_package_is_the_function(kit):
    operator = DenseOperator(torch.eye(4))
    assert isinstance(specxai.svd(operator, rank=2), SVDResult)
    assert svd is specxai.svd.svd
    assert "rank" in inspect.signature(specxai.svd).parameters


def test_products_are_counted(kit, shape, dtype, method):
    matrix = kit.prescribed(kit.spectra["steep"], *shape, dtype)
    for arguments in ({"rank": 6}, {"tol": 1e-2}):
        operator = kit.CountingOperator(matrix)
        result = specxai.svd(operator, method=method, block_size=8, **arguments)
        assert result.products == operator.columns
    if method == "exact":
        assert result.rank <= SAMPLED  # so that each triplet has products of its own, and the rest is sampled
        assert result.products == min(shape) + 2 * result.rank + SAMPLED


def test_seed_repeats_bit_for_bit(kit, shape, dtype, method):
    operator = DenseOperator(kit.prescribed(torch.linspace(2, 1, 60), *shape, dtype))
    first, again, other = (specxai.svd(operator, rank=6, method=method, block_size=8, seed=s) for s in (3, 3, 4))
    for name in ("U", "S", "V", "residuals"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.error == again.error
    torch.testing.assert_close(first.S, other.S, rtol=1e-3, atol=0)


def test_global_generator_is_left_alone(kit, method):
    state = torch.random.get_rng_state()
    specxai.svd(DenseOperator(torch.ones(40, 50)), rank=2, method=method)
    assert torch.equal(state, torch.random.get_rng_state())


def test_probes_are_not_the_users_random_numbers(dtype):
    # A matrix drawn under the seed that svd gets: shared streams would make rows of it the probes themselves.
    matrix = torch.randn(300, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = specxai.svd(DenseOperator(matrix), rank=5, tol=1e-1, method="krylov", seed=0)
    assert result.norm == pytest.approx(float(torch.linalg.norm(matrix)), rel=0.05)


def test_chunking_changes_nothing_beyond_rounding(kit, method, rtol, dtype):
    matrix = kit.prescribed(torch.linspace(2, 1, 60), 100, 80, dtype)
    operator = kit.CountingOperator(matrix, block_size=3)
    chunked = specxai.svd(operator, rank=4, method=method, block_size=8)
    whole = specxai.svd(DenseOperator(matrix), rank=4, method=method, block_size=8)
    assert operator.widest == 3
    # Rounding may move where an iteration stops; residuals of 1e-5 move values by their squares.
    torch.testing.assert_close(chunked.S, whole.S, rtol=max(rtol, 1e-8), atol=0)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty(shape, dtype, method):
    result = specxai.svd(DenseOperator(torch.zeros(shape, dtype=dtype)), rank=3, method=method)
    assert result.rank == 0
    assert result.U.shape == (shape[0], 0)
    assert result.V.shape == (shape[1], 0)
    assert result.error == 0.0
    assert result.relative_error == 0.0


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1)])
def test_one_row_or_column(kit, shape, dtype, method):
    matrix = torch.randn(shape, dtype=dtype)
    result = specxai.svd(DenseOperator(matrix), rank=1, method=method)
    kit.check(matrix, result)
    assert result.rank == 1
    assert float(result.S[0]) == pytest.approx(float(torch.linalg.norm(matrix)), rel=1e-5)


def test_zero_operator(dtype, method):
    result = specxai.svd(DenseOperator(torch.zeros(30, 20, dtype=dtype)), rank=3, method=method)
    assert (result.rank, result.error, result.norm) == (0, 0.0, 0.0)


def test_a_value_repeated_beyond_the_block(kit, dtype):
    # One Krylov block of 4 spans 4 of the identity's dimensions and then stands still; fresh blocks find the rest.
    result = specxai.svd(DenseOperator(torch.eye(30, dtype=dtype)), method="krylov", block_size=4)
    assert result.rank == 30
    kit.check(torch.eye(30, dtype=dtype), result)


def test_adjoint_swaps_sides(kit, dtype, method):
    matrix = kit.prescribed(kit.spectra["steep"], 100, 80, dtype)
    result = specxai.svd(DenseOperator(matrix).T, rank=4, method=method)
    kit.check(matrix.mT, result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank must be a positive integer"),
        ({"rank": 2.5}, r"got 2\.5"),
        ({"rank": True}, "rank must be"),
        ({"tol": -1e-3}, "tol is relative"),
        ({"tol": float("nan")}, "tol is relative"),
        ({"tol": 1.0}, "tol is relative"),
        ({"method": "lanczos"}, "one of auto, exact, krylov, subspace"),
        ({"seed": -1}, "seed must be"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"max_basis": 0}, "max_basis must be at least 1"),
        ({"max_products": 0}, "max_products must be at least 1"),
        ({"start": torch.zeros(3, 2)}, r"start must have shape \(4, j\)"),
    ],
)
def test_bad_values_name_cause(arguments, message):
    with pytest.raises(ValueError, match=message):
        specxai.svd(DenseOperator(torch.eye(4)), **arguments)


def test_wrong_operands():
    with pytest.raises(TypeError, match="DenseOperator"):
        specxai.svd(torch.eye(4))
    with pytest.raises(ValueError, match="float32 or float64"):
        specxai.svd(DenseOperator(torch.eye(4, dtype=torch.bfloat16)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_is_named(value, method):
    matrix = torch.eye(40)
    matrix[3, 5] = value
    with pytest.raises(ValueError, match="not finite"):
        specxai.svd(DenseOperator(matrix), rank=2, method=method)


def test_rank_out_of_range(method):
    operator = DenseOperator(torch.randn(6, 9))
    assert specxai.svd(operator, rank=6, method=method).rank == 6
    with pytest.raises(ValueError, match=r"rank 7 is out of range for an operator of shape \(6, 9\): it has 6"):
        specxai.svd(operator, rank=7, method=method)


@pytest.mark.parametrize("shown", [None, True, False])
def test_progress_survives_a_closed_stream(monkeypatch, shown):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert specxai.svd(DenseOperator(torch.eye(4)), rank=2, method="krylov", progress=shown).rank == 2
    monkeypatch.setattr(sys, "stderr", None)
    assert specxai.svd(DenseOperator(torch.eye(4)), rank=2, method="krylov", progress=shown).rank == 2


def test_settings_of_torch_are_kept_and_do_not_harm(kit):
    matrix = kit.prescribed(kit.spectra["steep"], 100, 80, torch.float32)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = specxai.svd(DenseOperator(matrix), rank=6, method="krylov")
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
    kit.check(matrix, result)
    assert not result.U.requires_grad


def test_per_backend_precision_is_kept():
    # torch.get_float32_matmul_precision raises in this state.
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        specxai.svd(DenseOperator(torch.eye(4)), rank=2)
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees(kit, dtype, method):
    matrix = kit.prescribed(kit.spectra["steep"], 100, 80, dtype)
    there = specxai.svd(DenseOperator(matrix.cuda()), rank=6, method=method)
    here = specxai.svd(DenseOperator(matrix), rank=6, method=method)
    assert there.S.is_cuda
    torch.testing.assert_close(there.S.cpu(), here.S, rtol=1e-4, atol=0)
    assert there.error == pytest.approx(here.error, rel=1e-2)
