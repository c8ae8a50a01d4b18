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


def random_stage(sites: int, dtype: torch.dtype, seed: int = 0):
    """Arguments of a GatherGemm over random runs, and the same map as a dense matrix (rows out, rows in)."""
    g = torch.Generator().manual_seed(seed)

    def below(n: int, *shape: int) -> torch.Tensor:
        return torch.randint(n, shape, generator=g)

    taps, depth, width, entries = 3, 7, 21, 40
    weight = torch.randn(width, taps, depth, generator=g, dtype=dtype)
    runs, made = [int(r) for r in below(4, sites)], [int(o) for o in below(30, sites)]
    entry = below(entries, sum(runs))
    count = (below(10, sum(runs))).minimum(entries - entry)
    arguments = {
        "run_begin": i32([0, *torch.tensor(runs).cumsum(0)]), "run_entry": i32(entry), "run_count": i32(count),
        "run_tap": i32(below(taps, sum(runs))), "in_row": i32(below(50, entries)),
        "in_column": i32(below(depth, entries)), "out_begin": i32([0, *torch.tensor(made).cumsum(0)]),
        "out_row": i32(torch.randperm(sum(made) + 5, generator=g)[: sum(made)]),
        "out_column": i32(below(width, sum(made))),
    }
    dense, run = torch.zeros(sum(made) + 5, 50, dtype=dtype), 0
    out = 0
    for s in range(sites):
        for o in range(out, out + made[s]):
            for r in range(run, run + runs[s]):
                for e in range(int(entry[r]), int(entry[r] + count[r])):
                    dense[arguments["out_row"][o], arguments["in_row"][e]] += weight[
                        arguments["out_column"][o], arguments["run_tap"][r], arguments["in_column"][e]]
        run, out = run + runs[s], out + made[s]
    return {**arguments, "weight": native.pack(weight), "width": width}, dense


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("stride", [16, 48, 64, 176])
def test_gather_gemm(dtype, level, stride):
    arguments, dense = random_stage(8, dtype)
    stage, Z = native.GatherGemm(**arguments), torch.randn(50, stride, dtype=dtype)
    written = arguments["out_row"].long()
    got = torch.zeros(len(dense), stride, dtype=dtype)
    stage.run(Z, got, level=level)
    assert_close(got[written], (dense @ Z)[written], factor=4)
    before = got.clone()
    stage.run(Z, got, accumulate=True, level=level)
    assert_close(got[written], (before + dense @ Z)[written], factor=4)
    assert stage.multiply_adds >= int((dense != 0).sum())


@pytest.mark.parametrize("stride", [16, 48, 64, 176])
def test_bfloat16_factors(stride):
    arguments, dense = random_stage(8, torch.float32)
    stage, Z = native.GatherGemm(**arguments), torch.randn(50, stride)
    got, written = torch.zeros(len(dense), stride), arguments["out_row"].long()
    if not native.has_bf16():
        with pytest.raises(RuntimeError, match="no bfloat16 products"):
            stage.run(Z, got, bf16=True)
        return
    stage.run(Z, got, bf16=True)
    # Weights that share an entry are rounded one by one, so |W||Z| is taken entry by entry.
    size = dense.abs() @ Z.abs() + 40
    error = (got - dense @ Z)[written].abs() / size[written]
    assert 1e-6 < error.max() <= 2**-7
    exact, half = torch.zeros_like(got), Z.bfloat16().float()
    rounded = {**arguments, "weight": arguments["weight"].bfloat16().float()}
    native.GatherGemm(**rounded).run(half, exact)
    assert ((got - exact)[written].abs() <= 1e-2 * size[written]).all()
    double = native.GatherGemm(**{**arguments, "weight": arguments["weight"].double()})
    with pytest.raises(ValueError, match="only float32 blocks"):
        double.run(Z.double(), got.double(), bf16=True)


def test_threads_do_not_change_a_bit(dtype):
    arguments, dense = random_stage(60, dtype)
    stage, Z = native.GatherGemm(**arguments), torch.randn(50, 64, dtype=dtype)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(torch.zeros(len(dense), 64, dtype=dtype))
        stage.run(Z, found[-1])
    assert torch.equal(*found)


@pytest.mark.parametrize("change, message", [
    ({"run_tap": i32([3])}, "run_tap spans 3 to 3, but must lie in 0 to 2"),
    ({"in_column": i32([0, 7])}, "in_column spans 0 to 7"), ({"out_column": i32([-1, 0])}, "out_column spans -1 to 0"),
    ({"in_row": i32([-1, 0])}, "in_row spans -1"), ({"out_row": i32([1, 1])}, "out_row holds row 1 twice"),
    ({"run_count": i32([3])}, "run 0 reaches beyond the entries"), ({"run_begin": i32([1, 1])}, "run_begin must start"),
    ({"out_begin": i32([0, 3])}, "out_begin must start at 0 and end at 2"),
    ({"run_count": i32([1, 1])}, "run_count has 2 entries, not 1"),
    ({"in_row": torch.zeros(2, dtype=torch.int64)}, "in_row must be a contiguous int32 vector"),
    ({"width": 40}, "does not hold 40 outputs"),
])
def test_bad_indices_never_reach_a_kernel(change, message):
    arguments = {
        "run_begin": i32([0, 1]), "run_entry": i32([0]), "run_count": i32([2]), "run_tap": i32([0]),
        "in_row": i32([0, 1]), "in_column": i32([0, 1]), "out_begin": i32([0, 2]), "out_row": i32([0, 1]),
        "out_column": i32([0, 1]), "weight": native.pack(torch.zeros(21, 3, 7)), "width": 21,
    }
    native.GatherGemm(**arguments)
    with pytest.raises(ValueError, match=message):
        native.GatherGemm(**(arguments | change))


def test_blocks_that_are_too_small():
    arguments, dense = random_stage(8, torch.float32)
    stage = native.GatherGemm(**arguments)
    with pytest.raises(ValueError, match="the input has 3 rows, the stage reads"):
        stage.run(torch.zeros(3, 16), torch.zeros(len(dense), 16))
    with pytest.raises(ValueError, match="the output has 3 rows, the stage writes"):
        stage.run(torch.zeros(50, 16), torch.zeros(3, 16))
    with pytest.raises(ValueError, match="a multiple of 16 probes"):
        stage.run(torch.zeros(50, 17), torch.zeros(len(dense), 17))
    with pytest.raises(ValueError, match="input holds 16 probes a row, output 32"):
        stage.run(torch.zeros(50, 16), torch.zeros(len(dense), 32))
    with pytest.raises(ValueError, match=r"must be contiguous torch\.float32"):
        stage.run(torch.zeros(50, 16).double(), torch.zeros(len(dense), 16))


def test_row_sum(dtype):
    begin, rows, scale = i32([0, 2, 2, 3]), i32([4, 0, 1]), torch.tensor([2.0, -1.0, 0.5], dtype=dtype)
    stage = native.RowSum(begin=begin, in_row=rows, scale=scale, out_row=i32([3, 0, 1]), dtype=dtype)
    X, out = torch.randn(5, 7, dtype=dtype), torch.ones(4, 16, dtype=dtype)
    stage.run(X, out, 7)
    want = torch.stack([torch.zeros(7, dtype=dtype), 0.5 * X[1], torch.ones(7, dtype=dtype), 2 * X[4] - X[0]])
    assert_close(out[:, :7], want)
    assert not out[[0, 1, 3], 7:].any(), "the rest of a row that is written becomes zero"
    stage.run(X, out, 7, accumulate=True)
    assert_close(out[3, :7], 2 * want[3])
    with pytest.raises(ValueError, match="the input has 2 rows"):
        stage.run(X[:2], out, 7)
    with pytest.raises(ValueError, match="narrower than the probes"):
        stage.run(X, out, 9)
    with pytest.raises(ValueError, match="out_row holds row 3 twice"):
        native.RowSum(begin=begin, in_row=rows, out_row=i32([3, 3, 1]), dtype=dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("m, b, c", [(1000, 7, 0), (333, 64, 0), (100, 65, 13), (1, 1, 1), (0, 3, 2), (50, 0, 4)])
def test_gram(dtype, level, m, b, c):
    X = torch.randn(m, b, dtype=dtype)
    Y = torch.randn(m, c, dtype=dtype) if c else None
    want = X.double().mT @ (X if Y is None else Y).double()
    torch.testing.assert_close(native.gram(X, Y, level=level), want, rtol=1e-13, atol=1e-12)


def test_gram_refuses():
    with pytest.raises(ValueError, match="X must be a contiguous matrix"):
        native.gram(torch.zeros(4, 3).T)
    with pytest.raises(ValueError, match="one dtype and one number of rows"):
        native.gram(torch.zeros(4, 3), torch.zeros(5, 3))
