"""Triton kernels: values in the interpreter, and code generated for sm_80 and sm_90 without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from triton_harness import accesses, assert_no_atomics, built_for, interpret

ROW_SUM = """
import torch
from specxai.kernels.row_sum import row_sum

torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 5e-14)):
    for n, k in ((1, 1), (70, 7), (9, 8), (130, 9), (33, 64), (5, 100), (0, 3), (4, 0)):
        sizes = torch.randint(0, 12, (n,))
        sizes[::3] = 0  # sums without entries
        begin = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).int()
        to, source = torch.randperm(n + 4)[:n].int(), torch.randint(0, 20, (int(sizes.sum()),)).int()
        block = torch.randn(20, k + 3, dtype=dtype)[:, :k]  # columns of a wider one
        for scale in (None, torch.randn(len(source), dtype=dtype)):
            entry = block[source.long()].double() * (1 if scale is None else scale.double()[:, None])
            sums = torch.zeros(n + 4, k, dtype=torch.float64)
            sums.index_add_(0, to.long().repeat_interleave(sizes), entry)
            before = torch.randn(n + 4, k, dtype=dtype)
            for accumulate in (False, True):
                want = before.double().clone()
                want[to.long()] = sums[to.long()] + (want[to.long()] if accumulate else 0)
                got = before.clone()
                row_sum(begin, to, source, scale, block, got, accumulate)
                again = before.clone()
                row_sum(begin, to, source, scale, block, again, accumulate)
                assert torch.equal(got, again)
                if got.numel():
                    error = (got - want).abs().max() / want.abs().max()
                    assert error <= tolerance, (dtype, n, k, scale is None, accumulate, error)

i32 = torch.zeros(2, dtype=torch.int32)
good = dict(begin=torch.tensor([0, 1, 2], dtype=torch.int32), to=i32, source=i32, scale=torch.ones(2),
            block=torch.zeros(3, 2), out=torch.zeros(3, 2))
for change, message in (({"begin": i32}, "one more than the 2 rows"), ({"scale": torch.ones(3)}, "there are 2 entries"),
                        ({"out": torch.zeros(3, 4)}, "as many probes a row"), ({"to": i32.long()}, "to is torch.int64"),
                        ({"out": torch.zeros(3, 2).double()}, "out is torch.float64"),
                        ({"block": torch.zeros(2, 3).T}, "probes must be contiguous")):
    try:
        row_sum(**(good | change))
    except (TypeError, ValueError) as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
print("ok")
"""


def test_row_sum_in_the_interpreter():
    interpret(ROW_SUM)


def test_products_in_the_interpreter():
    """A part of tests/kernels, which takes half a minute; `make test-kernels` runs all of it in some."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("tests/kernels runs in this process already")
    folder = Path(__file__).parents[1] / "kernels"
    # -P keeps the checkout off sys.path, whose sources would hide the compiled package.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", folder, "-k",
               "depthwise or few_live or precisions or explain or in_parts or a_decoder or replayed or test_route"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"},
                          cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"\d+ passed", done.stdout), "all were skipped"


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("probes", [1, 8, 64])
@pytest.mark.parametrize("real, instruction", [("fp32", "fma.rn.f32"), ("fp64", "fma.rn.f64")])
def test_row_sum_compiles_without_spills(real, instruction, probes, capability):
    from specxai.kernels import row_sum as stage
    from specxai.kernels.tile import sums_for

    types = dict.fromkeys(("begin", "to", "source"), "*i32") | dict.fromkeys(("scale", "block", "out"), f"*{real}")
    types |= {"n_rows": "i32", "n_probes": "i32", "stride_in": "i64", "stride_out": "i64"}
    constants = {"HAS_SCALE": True, "ACCUMULATE": True, "BLOCK_ROWS": sums_for(probes)[0], "BLOCK_PROBES": probes}
    aligned = [name for name in types if name != "n_rows"]
    built = built_for(stage.row_sum_kernel, types, constants, capability, aligned=aligned)
    assert instruction in built.ptx
    assert built.spills == 0
    assert_no_atomics(built.ptx)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("probes", [16, 64])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("real, instruction", [("fp32", "fma.rn.f32"), ("fp64", "fma.rn.f64")])
def test_low_rank_compiles_without_spills(real, instruction, rank, probes, capability):
    from specxai.kernels import low_rank as stage

    types = dict.fromkeys(("inside", "outside"), "*i32")
    types |= dict.fromkeys(("diagonal", "left", "right", "block", "out"), f"*{real}")
    types |= {"size": "i32", "n_probes": "i32", "stride_in": "i64", "stride_out": "i64"}
    units, wide = stage.tiles_for(768, probes)
    constants = {"RANK": rank, "ACCUMULATE": True, "BLOCK_UNITS": units, "BLOCK_PROBES": wide}
    built = built_for(stage.low_rank_kernel, types, constants, capability, aligned=list(types))
    assert instruction in built.ptx
    assert built.spills == 0
    assert_no_atomics(built.ptx)


TRITON_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
ONE, SIXTEENS = 1, 16  # what sizes and strides are told to be: one, or multiples of sixteen


def group_rows_built(size: int, rank: int, block, out, onto, capability: int, sizes: int = SIXTEENS):
    """The kernel for groups of so many units, and the warps of a program."""
    from specxai.kernels import group_rows as stage

    probes, units, warps = stage.tile_for(size, block)
    types = {name: f"*{TRITON_NAMES[t]}" for name, t in (("block", block), ("out", out), ("onto", onto)) if t}
    names = ("diagonal", "left", "right") if rank else ("diagonal",)
    types |= dict.fromkeys(names, "*fp64" if block is torch.float64 else "*fp32")
    constants = {"RANK": rank, "HAS_ONTO": onto is not None, "UNIT": sizes, "BLOCK_PROBES": probes,
                 "BLOCK_UNITS": units, "WHOLE": units >= size}
    constants |= dict.fromkeys({"left", "right", "onto"} - types.keys())
    counts = ("n_units", "n_groups", "n_probes", "block_probe", "block_group", "onto_probe", "onto_group", "out_probe",
              "out_group")
    (constants if sizes == ONE else types).update(dict.fromkeys(counts, 1 if sizes == ONE else "i32"))
    return built_for(stage.group_rows_kernel, types, constants, capability, warps=warps), warps


def scaled_weights_built(columns: int, parts: int, stored, made, capability: int, sizes: int = SIXTEENS):
    """The kernel for weights of so many columns, and the numbers of a thread's tile."""
    from specxai.kernels import scaled_weights as stage

    rows, wide = stage.tile_for(columns)
    pointers = ("first", "second", "third")
    types = dict.fromkeys(pointers[:parts], f"*{TRITON_NAMES[stored]}")
    types |= {"factors": "*fp32", "out": f"*{TRITON_NAMES[made]}"}
    constants = {"WEIGHTS": parts, "UNIT": sizes, "POSITIONS": stage.POSITIONS, "BLOCK_ROWS": rows,
                 "BLOCK_COLUMNS": wide} | dict.fromkeys(pointers[parts:])
    counts = ("n_rows", "column_units", "n_positions")
    (constants if sizes == ONE else types).update(dict.fromkeys(counts, 1 if sizes == ONE else "i32"))
    return built_for(stage.scaled_weights_kernel, types, constants, capability), rows * wide // 128


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("size", [64, 512, 768, 4096, 8192, 9008])
@pytest.mark.parametrize(("block", "out", "onto"), [
    (torch.bfloat16, torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16, None),
    (torch.float32, torch.bfloat16, torch.float32), (torch.float64, torch.float64, torch.float64)])
def test_group_rows_compiles_without_spills(block, out, onto, size, rank, capability):
    """All that is read and written goes sixteen bytes at a time, and registers leave room for two programs a processor
    up to 4096 units, so that one reads while another sums."""
    built, warps = group_rows_built(size, rank, block, out, onto, capability)
    assert built.spills == 0
    assert {width for _, width in accesses(built.ptx)} == {16}
    assert 2 * 32 * warps * built.registers <= 65536 or size > 4096
    assert_no_atomics(built.ptx)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("made", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_scaled_weights_compiles_without_spills(stored, made, parts, capability):
    """Sixteen bytes at a time; weights are read once, and a position has factors to read and a tile to write."""
    built, numbers = scaled_weights_built(4096, parts, stored, made, capability)
    assert built.spills == 0
    found = accesses(built.ptx)
    assert found["ld", 16] == parts * numbers * stored.itemsize // 16
    assert found["st", 16] == numbers * made.itemsize // 16
    assert {access for access in found if access[1] != 16} == {("ld", 4)}, "only factors are read one by one"
    assert_no_atomics(built.ptx)


def test_sizes_of_one_compile():
    """Triton takes them for constants, which have no types of their own."""
    for rank in (0, 2):
        for size in (1, 9001):
            group_rows_built(size, rank, torch.float16, torch.bfloat16, torch.bfloat16, 90, ONE)
    for parts in (1, 3):
        scaled_weights_built(1, parts, torch.bfloat16, torch.bfloat16, 90, ONE)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("entries", [1, 8])
@pytest.mark.parametrize("real", ["fp32", "fp16", "bf16"])
def test_route_compiles_without_spills(real, entries, capability):
    from specxai.kernels import route as stage

    types = {"at": "*i32", "scale": "*fp32", "block": f"*{real}", "out": f"*{real}"}
    types |= dict.fromkeys(("n_units", "n_probes", "stride_in", "stride_out"), "i32")
    constants = {"ENTRIES": entries, "BLOCK_UNITS": stage.UNITS, "BLOCK_PROBES": stage.PROBES}
    built = built_for(stage.route_kernel, types, constants, capability, stage.WARPS)
    assert built.spills == 0
    assert built.registers <= 160
    assert "fma.rn.f32" in built.ptx
    assert_no_atomics(built.ptx)
