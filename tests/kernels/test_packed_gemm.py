"""Packed GEMM in the interpreter against the same product in torch."""

from __future__ import annotations

import pytest
import torch

from rounding import factors
from specxai.kernels.packed_gemm import packed, packed_gemm
from specxai.kernels.precision import PRECISIONS
from specxai.kernels.split import parts_for
from specxai.kernels.tile import Tile
from tolerances import assert_close


def layer(outputs: int, inputs: int, dtype: torch.dtype, dead: float = 0.2):
    """Weights, rows and a block with rows to spare; some rows are none."""
    W = torch.randn(outputs, inputs, dtype=dtype)
    source, to = (torch.randperm(n + 5)[:n].int() for n in (inputs, outputs))
    source[torch.rand(inputs) < dead] = -1
    to[torch.rand(outputs) < dead] = -1
    return W, source, to


def expected(W, source, to, block, rows: int) -> torch.Tensor:
    """(rows, k), NaN where nothing is written."""
    live, made = source >= 0, to >= 0
    want = torch.full((rows, block.shape[1]), torch.nan, dtype=block.dtype)
    want[to[made].long()] = W[made][:, live] @ block[source[live].long()]
    return want


def same(got: torch.Tensor, want: torch.Tensor) -> None:
    written = want.isfinite().all(1)
    assert got[~written].isnan().all()
    assert_close(got[written], want[written], factor=4)


@pytest.mark.parametrize("outputs, inputs, probes", [(1, 1, 1), (5, 33, 7), (16, 9, 8), (130, 70, 9), (40, 100, 64),
                                                     (200, 31, 100), (3, 8, 0)])
@pytest.mark.parametrize("parts", [None, 3])
def test_both_directions(dtype, outputs, inputs, probes, parts):
    W, source, to = layer(outputs, inputs, dtype)
    made = packed(W, source, to)
    precision = "fp64" if dtype is torch.float64 else "fp32"
    for way, matrix, read, written in ((made, W, source, to), (made.adjoint(source), W.T, to, source)):
        block = torch.randn(len(read) + 5, probes, dtype=dtype)
        want = expected(matrix, read, written, block, len(written) + 5)
        got, again = torch.full_like(want, torch.nan), torch.full_like(want, torch.nan)
        packed_gemm(way, block, got, precision=precision, parts=parts)
        packed_gemm(way, block, again, precision=precision, parts=parts)
        same(got, want)
        assert torch.equal(got.nan_to_num(), again.nan_to_num())
        packed_gemm(way, block, got, accumulate=True, precision=precision, parts=parts)
        same(got, 2 * want)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("first", [True, False])
def test_a_scale_of_the_outputs(parts, first):
    W, source, to = layer(20, 50, torch.float32)
    scale, block = torch.randn(20), torch.randn(55, 12)
    want = expected(scale[:, None] * W, source, to, block, 25)
    got = torch.full_like(want, torch.nan)
    packed_gemm(packed(W, source, to, scale), block, got, parts=parts, tile=Tile(16, 16, first, 4, 2))
    same(got, want)
    with pytest.raises(ValueError, match="no adjoint here"):
        packed(W, source, to, scale).adjoint(source)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(precision):
    W, source, to = layer(33, 40, torch.float32, dead=0)
    block = torch.randn(45, 64)
    want = expected(factors(W, precision), source, to, factors(block, precision), 38)
    got = torch.full_like(want, torch.nan)
    packed_gemm(packed(W, source, to), block, got, precision=precision)
    same(got, want)


def test_parts_fill_a_card_and_are_long_enough():
    assert parts_for(1000, 256) == 1
    assert parts_for(10, 256) == 26
    assert parts_for(1, 16) == 2
    assert parts_for(1, 7) == 1


def test_what_does_not_fit():
    W, source, to = layer(4, 6, torch.float32)
    for change, error, message in (({"W": W.half()}, TypeError, "of torch.float16"),
                                   ({"source": source[1:]}, ValueError, "source must have 6 entries"),
                                   ({"to": to.long()}, TypeError, "to is torch.int64"),
                                   ({"to": to * 0}, ValueError, "to holds a row twice")):
        arguments = {"W": W, "source": source, "to": to} | change
        with pytest.raises(error, match=message):
            packed(*arguments.values())
    with pytest.raises(ValueError, match="to holds a row twice"):
        packed(W, source, to).adjoint(source * 0)
    with pytest.raises(ValueError, match="at least"):
        packed_gemm(packed(W, source, torch.arange(4, dtype=torch.int32)), torch.zeros(20, 4), torch.zeros(3, 4))
