"""Gather-GEMM in the interpreter against the dense matrix of the same tables."""

from __future__ import annotations

import pytest
import torch

from rounding import factors
from specxai.kernels.gather_gemm import gather_gemm, gathering
from specxai.kernels.precision import PRECISIONS
from specxai.kernels.split import parts_for
from specxai.kernels.tile import Tile, tile_for
from test_stages import random_stage, rows
from tolerances import assert_close

FLOWS = ("inputs", "outputs", "sites")


def tables_of(arguments: dict, prefer: str | None = "inputs"):
    return gathering(**arguments, device="cpu", prefer=prefer)


def check(arguments: dict, dense, probes: int, precision: str, tile: Tile | None = None,
          parts: int | None = None) -> None:
    """Overwrites what it writes, touches nothing else, adds where told, and repeats its bits."""
    for flow in FLOWS:
        check_flow(tables_of(arguments, flow), arguments, dense, probes, precision, tile, parts)


def check_flow(tables, arguments: dict, dense, probes: int, precision: str, tile: Tile | None = None,
               parts: int | None = None) -> None:
    Z = torch.randn(dense.shape[1], probes, dtype=dense.dtype)
    written = rows(arguments["outside"])
    want = (factors(dense, precision) @ factors(Z, precision))[written]
    got = torch.full((len(dense), probes), torch.nan, dtype=dense.dtype)  # a site without inputs writes zeros
    again = got.clone()
    gather_gemm(tables, Z, got, precision=precision, tile=tile, parts=parts)
    gather_gemm(tables, Z, again, precision=precision, tile=tile, parts=parts)
    left = torch.ones(len(dense), dtype=torch.bool).index_fill_(0, written, False)
    assert got[left].isnan().all()
    assert torch.equal(got[written], again[written])
    assert_close(got[written], want, factor=4)
    gather_gemm(tables, Z, got, accumulate=True, precision=precision, tile=tile, parts=parts)
    assert_close(got[written], 2 * want, factor=4)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("probes", [1, 7, 8, 9, 48, 100])
def test_any_number_of_probes(dtype, probes, groups):
    arguments, dense = random_stage(8, dtype, groups)
    check(arguments, dense, probes, "fp64" if dtype is torch.float64 else "fp32")


@pytest.mark.parametrize("groups, probes, parts", [(1, 1, 2), (3, 7, 5), (1, 64, 3)])
def test_sums_in_parts(dtype, groups, probes, parts):
    """Also parts without a chunk; and equal bits, as they are added in order."""
    arguments, dense = random_stage(3, dtype, groups, depth=40, made=20)
    check(arguments, dense, probes, "fp64" if dtype is torch.float64 else "fp32", parts=parts)


def test_few_programs_are_split():
    arguments, _ = random_stage(2, torch.float32, depth=600)
    chunks = tables_of(arguments).flow.chunks
    assert chunks >= 16
    assert parts_for(2, chunks) == chunks // 8
    few, many = (parts_for(programs, 64) for programs in (40, 400))
    assert (few, many) == (6, 1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("probes", [8, 64])
def test_precisions(precision, probes):
    arguments, dense = random_stage(5, torch.float32, depth=40)
    arguments["inside"] = torch.arange(9 * 40, dtype=torch.int32).reshape(9, 40)  # each row once: no sum to round
    arguments["neighbours"] = torch.arange(15, dtype=torch.int32).reshape(5, 3) % 9
    check(arguments, dense_of(arguments, dense.shape), probes, precision)


@pytest.mark.parametrize("live", [1, 7, 8, 9])
@pytest.mark.parametrize("probes", [4, 33])
def test_few_live_units(live, probes):
    """So many live inputs at one position and none elsewhere; so many live outputs a site."""
    arguments, dense = random_stage(6, torch.float32, depth=12, made=12, dead=(0.0, 0.0))
    inside, outside = arguments["inside"], arguments["outside"]
    dead = torch.ones_like(inside, dtype=torch.bool)
    dead[1, torch.randperm(12)[:live]] = False
    kept = torch.zeros(12, dtype=torch.bool)
    kept[torch.randperm(12)[:live]] = True
    dense = dense_of(arguments | {"inside": inside.masked_fill(dead, -1)}, dense.shape)
    arguments |= {"inside": inside.masked_fill(dead, -1), "outside": outside.masked_fill(~kept, -1)}
    check(arguments, dense, probes, "fp32")


def dense_of(arguments: dict, shape) -> torch.Tensor:
    """The map of ungrouped tables, entry by entry."""
    dense = torch.zeros(shape)
    for s, o in (arguments["outside"] >= 0).nonzero().tolist():
        for t, q in enumerate(arguments["neighbours"][s].tolist()):
            for c, row in enumerate(arguments["inside"][q].tolist() if q >= 0 else ()):
                if row >= 0:
                    dense[arguments["outside"][s, o], row] += arguments["weight"][o, t, c]
    return dense


@pytest.mark.parametrize("outputs", [5, 16, 130, 200])
def test_panels_of_outputs(outputs):
    check(*random_stage(4, torch.float32, made=outputs, dead=(0.5, 0.9)), 16, "fp32")


@pytest.mark.parametrize("first", [True, False])
def test_either_side_takes_the_probes(first):
    check(*random_stage(6, torch.float32, groups=2), 24, "fp32", Tile(16, 16, first, 4, 2))


def test_nothing_lives():
    arguments, dense = random_stage(4, torch.float32)
    for name in ("outside", "inside"):
        dead = arguments | {name: torch.full_like(arguments[name], -1)}
        check(dead, torch.zeros_like(dense) if name == "inside" else dense, 8, "fp32")


def test_a_view_of_wider_blocks():
    """Strides that are no multiple of sixteen numbers, and blocks that begin elsewhere."""
    arguments, dense = random_stage(6, torch.float32)
    wide = torch.randn(dense.shape[1], 23)
    out = torch.full((len(dense), 29), torch.nan)
    for flow in FLOWS:
        out.fill_(torch.nan)
        gather_gemm(tables_of(arguments, flow), wide[:, 3:12], out[:, 5:14])
        written = rows(arguments["outside"])
        assert_close(out[written, 5:14], (dense @ wide[:, 3:12])[written], factor=4)
        assert out[:, :5].isnan().all()
        assert out[:, 14:].isnan().all()


def test_few_channels_share_chunks_over_all_taps():
    """Lists of a site's own where three channels a position would fill a fifth of a chunk; else those of positions."""
    few, many = (tables_of(random_stage(12, torch.float32, depth=depth, dead=(0.0, 0.3))[0]).flow for depth in (3, 64))
    assert (few.depth, few.group_depth, len(few.chunk_at)) == (16, 9, 12)
    assert (many.depth, many.group_depth, len(many.rows)) == (32, 3 * 64, 9 * 64)


def test_multiply_adds_are_pairs_of_live_units():
    arguments, _ = random_stage(7, torch.float32, groups=3)
    inside, near = arguments["inside"].reshape(9, 3, -1) >= 0, arguments["neighbours"]
    outside = arguments["outside"].reshape(7, 3, -1) >= 0
    want = sum(int((inside[q].sum(1) * outside[s].sum(1)).sum()) for s in range(7) for q in near[s].tolist() if q >= 0)
    assert [tables_of(arguments, flow).entries for flow in FLOWS] == [want] * 3


def test_the_dataflow_that_computes_least():
    """Few live outputs are gathered, few live inputs likewise."""
    for dead, flow in (((0.0, 0.9), "ByOutputs"), ((0.8, 0.0), "ByInputs")):
        arguments, _ = random_stage(12, torch.float32, depth=64, made=64, dead=dead)
        assert type(tables_of(arguments, None).flow).__name__ == flow


@pytest.mark.parametrize(("name", "change", "error", "message"), [
    ("inside", lambda t: t.long(), TypeError, "inside is torch.int64, expected torch.int32"),
    ("inside", lambda t: t[:, :-1], ValueError, r"inside must have 7 columns, got \(9, 6\)"),
    ("outside", lambda t: t * 0, ValueError, "outside holds a row twice"),
    ("outside", lambda t: t[1:], ValueError, "neighbours has 4 sites, outside 3"),
    ("neighbours", lambda t: t + 9, ValueError, "neighbours names position 1[0-9] of 9"),
    ("weight", lambda t: t.half(), TypeError, "of torch.float16"),
    ("groups", lambda g: 2, ValueError, "inside must have 14 columns"),
])
def test_tables_that_do_not_fit(name, change, error, message):
    arguments, _ = random_stage(4, torch.float32)
    with pytest.raises(error, match=message):
        tables_of(arguments | {name: change(arguments[name])})


def test_blocks_that_do_not_fit():
    arguments, dense = random_stage(4, torch.float32)
    tables, Z, out = tables_of(arguments), torch.zeros(dense.shape[1], 4), torch.zeros(len(dense), 4)
    for block, to, precision, error, message in (
            (Z[:3], out, "fp32", ValueError, "block must be .* with at least"),
            (Z, out[:, :3], "fp32", ValueError, "as many probes a row"),
            (Z.double(), out, "fp32", TypeError, "block is torch.float64, expected torch.float32"),
            (Z.T.contiguous().T, out, "fp32", ValueError, "probes must be contiguous"),
            (Z, out, "fp16", ValueError, "unknown precision 'fp16'")):
        with pytest.raises(error, match=message):
            gather_gemm(tables, block, to, precision=precision)


def test_tiles_are_of_panels():
    """A tile that is chosen by size is one of those that tables are made for."""
    for outputs in (1, 2, 16, 17, 64, 100, 128, 129, 1000):
        arguments, _ = random_stage(2, torch.float32, made=outputs, depth=2)
        tables = tables_of(arguments)
        for probes in (1, 8, 33, 64, 200):
            for precision in PRECISIONS:
                assert tile_for(outputs, probes, precision).out in tables.flow.tiles


@pytest.mark.parametrize("groups, depth, probes, parts", [(1, 12, 7, None), (3, 5, 64, None), (1, 40, 8, 3)])
def test_units_with_factors(dtype, groups, depth, probes, parts):
    """Of what is read, and of what is written; also where a site has a list of its own."""
    arguments, dense = random_stage(6, dtype, groups, depth=depth)
    Z = torch.randn(dense.shape[1], probes, dtype=dtype)
    per_row = [torch.randn(side, dtype=dtype) for side in dense.shape]  # of each row of out, and of the block
    made, scale = (factor[arguments[name].clamp_min(0).long()]
                   for factor, name in zip(per_row, ("outside", "inside"), strict=True))
    want = per_row[0][:, None] * (dense @ (per_row[1][:, None] * Z))
    for flow in FLOWS:
        tables = gathering(**arguments, device="cpu", prefer=flow, scale=scale, made_scale=made)
        got = torch.zeros(len(dense), probes, dtype=dtype)
        gather_gemm(tables, Z, got, precision="fp64" if dtype is torch.float64 else "fp32", parts=parts)
        assert_close(got, want, factor=8)
    with pytest.raises(ValueError, match="made_scale must be"):
        gathering(**arguments, device="cpu", made_scale=made[:, 1:])
