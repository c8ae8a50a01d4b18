"""Stages of a plan against sums written out in torch; what they refuse; that threads and order do not matter."""

from __future__ import annotations

import pytest
import torch

from specxai import native
from tolerances import assert_close

pytestmark = pytest.mark.skipif(not native.available()[0], reason=f"no compiled kernels: {native.available()[1]}")
LEVELS = native.supported_levels() if native.available()[0] else []


def i32(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


def rows(table: torch.Tensor) -> torch.Tensor:
    return table[table >= 0].long()


def random_stage(sites: int, dtype: torch.dtype, groups: int = 1, depth: int = 7, made: int = 21,
                 dead=(0.5, 0.3), seed: int = 0):
    """Arguments of a GatherGemm over random tables, and the same map as a dense matrix (rows out, rows in).

    dead   shares of the inputs and of the outputs
    """
    g = torch.Generator().manual_seed(seed)

    def table(rows: int, columns: int, below: int, dead: float, distinct: bool = False) -> torch.Tensor:
        some = torch.randperm(below, generator=g) if distinct else torch.randint(below, (below,), generator=g)
        live = some[: rows * columns].reshape(rows, columns)
        return i32(torch.where(torch.rand(rows, columns, generator=g) < dead, -1, live))

    taps, places = 3, 9
    weight = torch.randn(groups * made, taps, depth, generator=g, dtype=dtype)
    inside = table(places, groups * depth, places * groups * depth, dead[0])  # an input may come twice
    outside = table(sites, groups * made, sites * groups * made + 5, dead[1], distinct=True)
    neighbours = table(sites, taps, max(places, sites * taps), 0.3) % places
    neighbours[torch.rand(sites, taps, generator=g) < 0.3] = -1
    dense = torch.zeros(outside.numel() + 5, inside.numel(), dtype=dtype)
    for site, o in (outside >= 0).nonzero().tolist():
        for tap, place in enumerate(neighbours[site].tolist()):
            own = inside[place].reshape(groups, depth)[o // made] if place >= 0 else inside[0, :0]
            live = own >= 0
            if len(own):
                dense[outside[site, o]].index_add_(0, own[live].long(), weight[o, tap][live])
    return {"inside": inside, "outside": outside, "neighbours": neighbours, "weight": weight,
            "groups": groups}, dense


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 48, 64, 176])
# The last two are dense in their inputs and sparse in their outputs: few probes then take them by inputs, the last in
# whole tiles of outputs.
@pytest.mark.parametrize("shape", [{"sites": 8}, {"sites": 90, "depth": 33, "dead": (0.1, 0.9)},
                                   {"sites": 90, "depth": 33, "made": 80, "dead": (0.1, 0.75)}],
                         ids=["out", "in", "in-many"])
def test_gather_gemm(dtype, level, stride, groups, shape):
    arguments, dense = random_stage(dtype=dtype, groups=groups, **shape)
    stage, Z = native.GatherGemm(**arguments), torch.randn(dense.shape[1], stride, dtype=dtype)
    written = rows(arguments["outside"])
    got = torch.full((len(dense), stride), torch.nan, dtype=dtype)  # a site without inputs writes zeros
    stage.run(Z, got, level=level)
    left = torch.ones(len(dense), dtype=torch.bool).index_fill_(0, written, False)
    assert got[left].isnan().all()
    assert_close(got[written], (dense @ Z)[written], factor=4)
    before = got.clone()
    stage.run(Z, got, accumulate=True, level=level)
    assert_close(got[written], (before + dense @ Z)[written], factor=4)
    stage.run(Z, got, level=level, may_spread=False)
    assert_close(got[written], (dense @ Z)[written], factor=4)
    assert stage.multiply_adds >= int((dense != 0).sum())


@pytest.mark.parametrize("stride", [2, 64])
# Few probes take the first by outputs, the second by inputs.
@pytest.mark.parametrize(("sites", "dead"), [(3, (0.5, 0.3)), (40, (0.0, 0.97))], ids=["out", "in"])
def test_weights_too_many_for_a_cache(dtype, stride, sites, dead):
    """More than 4 MB: a few taps and some of the outputs at a time."""
    arguments, dense = random_stage(sites, dtype, depth=512, made=720, dead=dead)
    stage, Z = native.GatherGemm(**arguments), torch.randn(dense.shape[1], stride, dtype=dtype)
    got, written = torch.zeros(len(dense), stride, dtype=dtype), rows(arguments["outside"])
    for total in (dense @ Z, 2 * (dense @ Z)):
        stage.run(Z, got, accumulate=bool(got.any()))
        assert_close(got[written], total[written], factor=8)


needs_rough = pytest.mark.skipif(not LEVELS or not native.has_rough(), reason="no 16-bit products on this processor")
# So many outputs that rounding pays.
ROUGH_SHAPES = [{"sites": 8, "depth": 40, "made": 150}, {"sites": 40, "depth": 33, "made": 700, "dead": (0.1, 0.9)},
                {"sites": 12, "depth": 30, "made": 80, "groups": 3},
                {"sites": 9, "depth": 600, "made": 120, "dead": (0.1, 0.3)},
                {"sites": 8, "depth": 512, "made": 1500, "dead": (0.5, 0.5)}]


def rounding(arguments, dense, Z):
    """How far products of rounded factors may lie from dense @ Z, (rows, probes)."""
    weight_unit = torch.zeros(len(dense), 1)
    largest = arguments["weight"].abs().amax((1, 2))
    for site in arguments["outside"]:
        live = site >= 0
        weight_unit[site[live].long(), 0] = largest[live] / 2047
    input_unit = Z.abs().amax(0) / 4095
    entries = dense.ne(0).float()
    bound = (dense.abs().sum(1, keepdim=True) * input_unit + weight_unit * (entries @ Z.abs())) / 2
    bound += entries.sum(1, keepdim=True) * weight_unit * input_unit / 4
    return bound + 1e-5 * (dense.abs() @ Z.abs())


@needs_rough
@pytest.mark.parametrize("shape", ROUGH_SHAPES, ids=["live", "sparse", "groups", "segments", "weights"])
@pytest.mark.parametrize("stride", [16, 48, 64, 176])
def test_rough_factors(stride, shape):
    arguments, dense = random_stage(dtype=torch.float32, **shape)
    stage, Z = native.GatherGemm(**arguments), torch.randn(dense.shape[1], stride)
    Z[:, 3], Z[:, 5] = 0.0, 1e6 * Z[:, 5]  # a column is rounded by its own largest number
    written = rows(arguments["outside"])
    got = torch.full((len(dense), stride), torch.nan)
    stage.run(Z, got, rough=True)
    error, bound = (got - dense @ Z)[written].abs(), rounding(arguments, dense, Z)[written]
    assert (error <= bound).all()
    assert not got[written, 3].any()
    relative = error[:, 7].norm() / (dense @ Z)[written, 7].norm()
    assert 1e-5 < relative < 2e-3, "rounded, and as finely as 16 bits can be"
    before = got.clone()
    stage.run(Z, got, accumulate=True, rough=True)
    assert_close(got[written], 2 * before[written])


@needs_rough
def test_rough_factors_of_any_size():
    """Sums of the largest possible products fit; what is not finite stays in its column."""
    arguments, dense = random_stage(9, torch.float32, depth=600, made=90, dead=(0.0, 0.0))
    arguments["weight"] = torch.ones_like(arguments["weight"])
    Z = torch.ones(dense.shape[1], 16)
    read = int(dense.any(0).nonzero()[0])
    Z[:, 1], Z[read, 2], Z[read, 3], Z[:, 4] = -3e30, torch.inf, torch.nan, 1e-35
    written, got = rows(arguments["outside"]), torch.zeros(len(dense), 16)
    native.GatherGemm(**arguments).run(Z, got, rough=True)
    inputs = [arguments["inside"][near[near >= 0].long()] for near in arguments["neighbours"]]
    entries = torch.stack([(rows >= 0).sum() for rows in inputs])
    entries = torch.zeros(len(dense)).index_put_((arguments["outside"].long(),), entries[:, None].float())[written]
    assert entries.max() > 1024
    assert_close(got[written, 0], entries)
    assert_close(got[written, 1] / 3e30, -entries)
    reads = got[written].isnan()
    assert reads[:, 2].any()
    assert reads[:, 3].any()
    assert not reads[:, [0, 1, *range(4, 16)]].any()
    assert not got[written, 4].any()


@needs_rough
def test_rough_stages_without_taps_are_zero():
    arguments, dense = random_stage(8, torch.float32, depth=40, made=60)
    arguments |= {"neighbours": arguments["neighbours"][:, :0].contiguous(), "weight": arguments["weight"][:, :0]}
    got, written = torch.ones(len(dense), 16), rows(arguments["outside"])
    native.GatherGemm(**arguments).run(torch.randn(dense.shape[1], 16), got, rough=True)
    assert not got[written].any()


def test_rough_refusals():
    arguments, dense = random_stage(8, torch.float32)
    block, got = torch.zeros(dense.shape[1], 16), torch.zeros(len(dense), 16)
    if not native.has_rough():
        with pytest.raises(RuntimeError, match="no 16-bit products"):
            native.GatherGemm(**arguments).run(block, got, rough=True)
        return
    double = native.GatherGemm(**{**arguments, "weight": arguments["weight"].double()})
    with pytest.raises(ValueError, match="only float32 blocks"):
        double.run(block.double(), got.double(), rough=True)


@pytest.mark.parametrize("across", [1, 3, 10, 30, 90])
def test_order_of_the_sites_changes_nothing(across):
    arguments, dense = random_stage(90, torch.float32)
    Z, got = torch.randn(dense.shape[1], 16), torch.zeros(2, len(dense), 16)
    for lines, block in zip((None, across), got, strict=True):
        native.GatherGemm(**arguments, across=lines).run(Z, block)
    assert got.any()
    assert torch.equal(*got)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match="across must divide"):
            native.GatherGemm(**arguments, across=wrong)


@pytest.mark.parametrize("stride", [1, 8, 64])
@pytest.mark.parametrize("shape", [{"sites": 700, "depth": 64, "made": 64, "dead": (0.5, 0.3)},
                                   {"sites": 900, "depth": 96, "made": 80, "dead": (0.1, 0.8)}], ids=["out", "in"])
def test_threads_do_not_change_a_bit(dtype, stride, shape):
    arguments, dense = random_stage(dtype=dtype, **shape)
    stage, Z = native.GatherGemm(**arguments), torch.randn(dense.shape[1], stride, dtype=dtype)
    assert stage.multiply_adds >= 1 << 19, "work for two threads, even on one probe"
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(torch.zeros(len(dense), stride, dtype=dtype))
        stage.run(Z, found[-1])
    assert torch.equal(*found)


@pytest.mark.parametrize("change, message", [
    ({"inside": i32([[0, -2]])}, "inside spans -2 to 0, but must lie in -1 to"),
    ({"outside": i32([[0, -2, 3]])}, "outside spans -2 to 3"),
    ({"outside": i32([[0, 1, 1]])}, "outside holds row 1 twice"),
    ({"neighbours": i32([[1, 0]])}, "neighbours spans 0 to 1, but must lie in -1 to 0"),
    ({"neighbours": i32([[-2, 0]])}, "neighbours spans -2 to 0"),
    ({"neighbours": i32([[0]])}, "neighbours has 1 elements, not 2"),
    ({"inside": i32([[0]])}, "inside has 1 elements, not 2"), ({"groups": 0}, "inside has 2 elements, not 0"),
    ({"groups": 2, "inside": i32([[0, 1, 2, 3]])}, "groups must divide the outputs"),
    ({"groups": -1}, "groups = -1 is negative"),
    ({"inside": torch.zeros(1, 2, dtype=torch.int64)}, "inside must be a contiguous int32 table"),
    ({"neighbours": i32([0, 0])}, "neighbours must be a contiguous int32 table"),
    ({"outside": i32([range(40)])}, "does not hold 40 outputs"),
])
def test_bad_indices_never_reach_a_kernel(change, message):
    arguments = {"inside": i32([[0, 1]]), "outside": i32([[0, -1, 1]]), "neighbours": i32([[0, -1]]),
                 "weight": torch.zeros(3, 2, 2)}
    native.GatherGemm(**arguments)
    with pytest.raises(ValueError, match=message):
        native.GatherGemm(**(arguments | change))


def test_blocks_that_are_too_small():
    arguments, dense = random_stage(8, torch.float32)
    stage = native.GatherGemm(**arguments)
    with pytest.raises(ValueError, match="the input has 3 rows, the stage reads"):
        stage.run(torch.zeros(3, 16), torch.zeros(len(dense), 16))
    with pytest.raises(ValueError, match="the output has 3 rows, the stage writes"):
        stage.run(torch.zeros(dense.shape[1], 16), torch.zeros(3, 16))
    with pytest.raises(ValueError, match="1, 2, 4, 8 or a multiple of 16 probes"):
        stage.run(torch.zeros(dense.shape[1], 17), torch.zeros(len(dense), 17))
    with pytest.raises(TypeError, match="incompatible function arguments"):
        stage.run(torch.zeros(dense.shape[1], 4), torch.zeros(len(dense), 4), may_spread="inputs")
    with pytest.raises(ValueError, match="input holds 16 probes a row, output 32"):
        stage.run(torch.zeros(dense.shape[1], 16), torch.zeros(len(dense), 32))
    with pytest.raises(ValueError, match=r"must be contiguous torch\.float32"):
        stage.run(torch.zeros(dense.shape[1], 16).double(), torch.zeros(len(dense), 16))


def test_row_sum(dtype):
    to, source, scale = i32([3, 1, 3]), i32([4, 1, 0]), torch.tensor([2.0, 0.5, -1.0], dtype=dtype)
    stage = native.RowSum(to=to, source=source, scale=scale, dtype=dtype)
    X, out = torch.randn(5, 7, dtype=dtype), torch.ones(4, 16, dtype=dtype)
    stage.run(X, out, 7)
    assert_close(out[[1, 3], :7], torch.stack([0.5 * X[1], 2 * X[4] - X[0]]))
    assert bool((out[[0, 2]] == 1).all()), "rows that no entry names are left alone"
    assert not out[[1, 3], 7:].any(), "the rest of a row that is written becomes zero"
    stage.run(X, out, 7, accumulate=True)
    assert_close(out[3, :7], 2 * (2 * X[4] - X[0]))
    wide = torch.ones(4, 32, dtype=dtype)
    stage.run(X[:, 2:5], wide[:, 4:20], 3)  # columns of wider blocks
    assert_close(wide[3, 4:7], 2 * X[4, 2:5] - X[0, 2:5])
    assert not wide[3, 7:20].any()
    assert bool((wide[:, :4] == 1).all() and (wide[:, 20:] == 1).all())
    with pytest.raises(ValueError, match="the input has 2 rows"):
        stage.run(X[:2], out, 7)
    with pytest.raises(ValueError, match="row by row"):
        stage.run(X.T, out, 4)
    with pytest.raises(ValueError, match="the output has 3 rows"):
        stage.run(X, out[:3], 7)
    with pytest.raises(ValueError, match="n_probes=9: the input holds 7 a row, the output 16"):
        stage.run(X, out, 9)
    with pytest.raises(ValueError, match="to spans -1 to 3, but must lie in 0"):
        native.RowSum(to=i32([3, -1, 1]), source=source, dtype=dtype)
    with pytest.raises(ValueError, match="from_ has 2 elements, not 3"):
        native.RowSum(to=to, source=source[:2], dtype=dtype)
