"""Norms and softmaxes of whole values in the interpreter: a diagonal plus a low rank in each group."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rounding import assert_rounded
from specxai.kernels.group_rows import group_rows

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def tables(rank: int, groups: int, size: int, dtype: torch.dtype) -> dict[str, Tensor | None]:
    shape = (groups, size)
    made = {name: torch.randn(rank, *shape, dtype=dtype) for name in ("left", "right")} if rank else {}
    return {"diagonal": torch.randn(shape, dtype=dtype), "left": None, "right": None} | made


def dense(block: Tensor, diagonal: Tensor, left: Tensor | None, right: Tensor | None,
          onto: Tensor | None = None) -> Tensor:
    """The same in float64, by one matrix for each group."""
    matrix = torch.diag_embed(diagonal.double())
    if left is not None:
        matrix += torch.einsum("rgi,rgj->gij", left.double(), right.double())
    made = torch.einsum("gij,pgj->pgi", matrix, block.double())
    return made if onto is None else onto.double() + made


def real(dtype: torch.dtype) -> torch.dtype:
    """Of the tables of a block."""
    return torch.float64 if dtype is torch.float64 else torch.float32


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize(("groups", "size", "probes"), [(1, 1, 1), (3, 7, 3), (2, 8, 65), (2, 9, 3), (5, 33, 65),
                                                        (1, 150, 1), (2, 300, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(dtype, groups, size, probes, rank):
    block = torch.randn(probes, groups, size).to(dtype)
    given = tables(rank, groups, size, real(dtype))
    for made in {dtype, real(dtype), torch.float64 if dtype is torch.float64 else torch.bfloat16}:
        got, again = (torch.empty(block.shape, dtype=made) for _ in range(2))
        for out in (got, again):
            group_rows(block, **given, out=out)
        assert torch.equal(got, again)
        assert_rounded(got, dense(block, **given), real(dtype))


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(dtype, rank):
    block, onto = torch.randn(2, 3, 4, 40).to(dtype)
    given = tables(rank, 4, 40, real(dtype))
    want, added = dense(block, **given), dense(block, **given, onto=onto)
    in_block, in_onto, in_both, elsewhere = block.clone(), onto.clone(), block.clone(), torch.empty_like(block)
    group_rows(in_block, **given, out=in_block)
    assert_rounded(in_block, want, real(dtype))
    group_rows(block, **given, out=in_onto, onto=in_onto)
    assert_rounded(in_onto, added, real(dtype))
    group_rows(in_both, **given, out=in_both, onto=onto)
    assert torch.equal(in_both, in_onto)
    group_rows(block, **given, out=elsewhere, onto=onto)
    assert torch.equal(elsewhere, in_onto)


@pytest.mark.parametrize("inside", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stream", [torch.bfloat16, torch.float32])
def test_onto_a_residual_stream(inside, stream):
    """A block of bfloat16 onto float32, and so on, each a part of something larger: probes are not adjacent."""
    block = torch.randn(7, 5, 60).to(inside)[::2, 1:4, 3:51]
    whole = torch.randn(8, 5, 64).to(stream)
    out, untouched = whole[::2, 1:4, 8:56], whole.clone()
    given = tables(1, 3, 48, torch.float32)
    want = dense(block, **given, onto=out)
    group_rows(block, **given, out=out, onto=out)
    assert_rounded(out, want, torch.float32)
    untouched[::2, 1:4, 8:56] = out
    assert torch.equal(whole, untouched)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rows_that_do_not_fit_in_registers(dtype):
    block, onto = torch.randn(2, 3, 2, 8200).to(dtype)
    for rank in (0, 2):
        given = tables(rank, 2, 8200, real(dtype))
        sums = 0 if rank == 0 else torch.einsum("rgj,pgj->pgr", given["right"].double(), block.double())
        want = onto.double() + given["diagonal"].double() * block.double()
        want += 0 if rank == 0 else torch.einsum("rgi,pgr->pgi", given["left"].double(), sums)
        got = block.clone()
        group_rows(got, **given, out=got, onto=onto)
        assert_rounded(got, want, real(dtype))


@pytest.mark.parametrize("made", [torch.bfloat16, torch.float16])
def test_rounds_once_to_the_nearest(made):
    """Sums of integers are exact: what is stored has the bits of torch's own rounding, ties to even included."""
    block = torch.randint(-30, 30, (5, 3, 64)).to(made)
    given = {name: None if t is None else t.mul(3).round() for name, t in tables(2, 3, 64, torch.float32).items()}
    exact = dense(block, **given)
    assert (exact != exact.to(made).double()).any(), "nothing is rounded"
    got = torch.empty(block.shape, dtype=made)
    group_rows(block, **given, out=got)
    assert torch.equal(got, exact.to(made))


def test_nothing_to_do():
    for shape in ((0, 2, 3), (2, 0, 3), (2, 3, 0)):
        out = torch.empty(shape)
        group_rows(torch.ones(shape), **tables(1, *shape[1:], torch.float32), out=out)
        assert out.shape == shape


@pytest.mark.parametrize(("name", "change", "error", "message"), [
    ("block", lambda t: t.int(), TypeError, "block must be bfloat16, float16, float32 or float64, got torch.int32"),
    ("block", lambda t: t[0], ValueError, r"block must be \(probes, groups, units\), got \(3, 4\)"),
    ("block", lambda t: t.transpose(1, 2).contiguous().mT, ValueError, "units must be contiguous, .* of block"),
    ("block", lambda t: t.double(), TypeError, "out is torch.float32; with a block of torch.float64 it may"),
    ("out", lambda t: t.half(), TypeError, "it may be torch.bfloat16 or torch.float32$"),
    ("out", lambda t: t[1:], ValueError, r"out must be \(2, 3, 4\) as the block, got \(1, 3, 4\)"),
    ("onto", lambda t: t[:, :1], ValueError, r"onto must be \(2, 3, 4\) as the block, got \(2, 1, 4\)"),
    ("onto", lambda t: t.to("meta"), ValueError, "onto is on meta, expected cpu"),
    ("diagonal", lambda t: t.bfloat16(), TypeError, "diagonal is torch.bfloat16, expected torch.float32"),
    ("left", lambda t: None, ValueError, "left and right come together, got only right"),
    ("left", lambda t: t.repeat(3, 1, 1), ValueError, r"rank 1 to 2, got \(3, 3, 4\)"),
    ("right", lambda t: t[..., 1:], ValueError, r"right must be \(1, 3, 4\), got \(1, 3, 3\)"),
    ("right", lambda t: t.mT.contiguous().mT, ValueError, "right must be contiguous")])
def test_refuses(name, change, error, message):
    given = tables(1, 3, 4, torch.float32) | {key: torch.ones(2, 3, 4) for key in ("block", "out", "onto")}
    with pytest.raises(error, match=message):
        group_rows(**given | {name: change(given[name])})
