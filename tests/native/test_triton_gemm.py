"""Code that Triton generates for the products, for cards that are not here: which instructions multiply, how wide
copies are, and that registers and shared memory suffice.  Values are tested in tests/kernels."""

from __future__ import annotations

import re

import pytest
import torch

from specxai.backends.cuda.engine import PRECISION, ROUGH
from specxai.kernels import depthwise, gather_inputs, gather_outputs, packed_gemm
from specxai.kernels.precision import PRECISIONS, dot_mode
from specxai.kernels.tile import sums_for, tile_for, tiles_for
from triton_harness import SHARED_LIMIT, assert_no_atomics, built_for, triton

CAPABILITIES = (80, 90)
OLD = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
# (outputs of a group, probes)
SHAPES = ((128, 64), (64, 64), (16, 64), (64, 8), (16, 16))
INDICES = "*i32"


def gather_case(outputs: int, probes: int, precision: str, accumulate: bool = True, split: bool = False,
                scales: bool = False):
    tile, real = tile_for(outputs, probes, precision), "*fp64" if precision == "fp64" else "*fp32"
    types = dict.fromkeys(("tiles", "chunk_begin", "chunk_at", "chunk_weight", "rows", "channel", "outside"), INDICES)
    types |= dict.fromkeys(("weight", "factor", "made_factor", "block", "out"), real)
    types |= dict.fromkeys(("n_panels", "n_groups", "group_depth", "probe_units", "in_units", "out_units"), "i32")
    constants = {"MODE": mode_of(precision), "ACCUMULATE": accumulate, "SPLIT": split,
                 "PROBES_FIRST": tile.probes_first, "SCALES": scales, "SCALES_MADE": scales,
                 "UNIT": 16 if probes >= 16 else 4, "BLOCK_OUT": tile.out, "BLOCK_PROBES": tile.probes, "BLOCK_IN": 32}
    return gather_inputs.gather_gemm_kernel, types, constants, tile


def outputs_case(outputs: int, probes: int, precision: str, accumulate: bool = True, split: bool = False,
                 scales: bool = False):
    _, _, constants, tile = gather_case(outputs, probes, precision, accumulate, split, scales)
    types = dict.fromkeys(("sites", "channel", "to", "chunk_begin", "chunk_at", "chunk_weight", "rows"), INDICES)
    types |= dict.fromkeys(("weight", "factor", "made_factor", "block", "out"),
                           "*fp64" if precision == "fp64" else "*fp32")
    types |= dict.fromkeys(("n_groups", "n_outputs", "weight_units", "probe_units", "in_units", "out_units"), "i32")
    return gather_outputs.gather_outputs_kernel, types, constants, tile


def sites_case(outputs: int, probes: int, precision: str, split: bool):
    """Weights packed per site, each panel with its own: one group and one panel, which Triton takes for constants."""
    kernel, types, constants, tile = gather_case(outputs, probes, precision, split=split, accumulate=not split)
    ones = ("n_panels", "n_groups")
    return kernel, {name: types[name] for name in types if name not in ones}, constants | dict.fromkeys(ones, 1), tile


def packed_case(outputs: int, probes: int, precision: str, transposed: bool, accumulate: bool = False,
                split: bool = False):
    tile, real = tile_for(outputs, probes, precision), "*fp64" if precision == "fp64" else "*fp32"
    types = dict.fromkeys(("source", "to"), INDICES) | dict.fromkeys(("weight", "scale", "block", "out"), real)
    types |= dict.fromkeys(("n_chunks", "part_chunks", "part_rows", "weight_units", "probe_units", "in_units",
                            "out_units"), "i32")
    constants = {"MODE": mode_of(precision), "HAS_SCALE": not split, "ACCUMULATE": accumulate, "SPLIT": split,
                 "TRANSPOSED": transposed, "PROBES_FIRST": tile.probes_first, "UNIT": 16 if probes >= 16 else 4,
                 "BLOCK_OUT": tile.out, "BLOCK_PROBES": tile.probes, "BLOCK_IN": packed_gemm.DEPTH}
    return packed_gemm.packed_gemm_kernel, types, constants, tile


def mode_of(precision: str) -> str:
    return dot_mode(precision, torch.float64 if precision == "fp64" else torch.float32)


def assert_multiplies(built, precision: str, capability: int, probes: int) -> None:
    """Tensor cores where asked for, of the right factors; none for fp32."""
    found = {name.split(".")[0] for name in built.products}
    if precision == "fp32":
        assert not found, built.products
        assert "fma.rn.f32" in built.ptx
        return
    factors = {"b": "bf16.bf16", "t": "tf32.tf32", "f": "f64.f64"}[precision[0]]
    # wgmma fills 64 on its first side: the smaller tiles stay with the instruction of before.
    wide = capability >= 90 and probes >= 64 and precision != "fp64"
    assert found == {"wgmma" if wide else "mma"}, built.products
    assert all(factors in name for name in built.products), built.products


def assert_fits(built, capability: int) -> None:
    assert built.spills == 0, f"{built.spills} bytes of the stack"
    assert built.registers <= 255
    assert built.shared <= SHARED_LIMIT[capability]
    assert_no_atomics(built.ptx)


def assert_wide_copies(built, tile, probes: int, precision: str, indices: int) -> None:
    """Rows of weights and of probes come sixteen bytes at a time, asynchronously, for a stage before the loop and one
    in it; those of few probes eight.  What is copied four bytes at a time is indices: so many tables of them, once for
    each of the pipeline's stages and once in the loop, which Triton 3.6 spreads over more threads."""
    lines = 32 * (8 if precision == "fp64" else 4) // 16  # of a chunk of 32 rows, for one number each
    wide = tile.out + (tile.probes if probes >= 16 else 0)
    assert built.copies[16] >= 2 * lines * wide // (32 * tile.warps), built.copies
    assert probes < 16 or built.copies[8] == 0, built.copies
    if not OLD:
        assert built.copies[4] <= (tile.stages + 1) * indices, built.copies


def assert_gathers(case, probes: int, precision: str, capability: int) -> None:
    kernel, types, constants, tile = case
    built = built_for(kernel, types, constants, capability, tile.warps, tile.stages)
    assert_multiplies(built, precision, capability, probes)
    assert_fits(built, capability)
    assert_wide_copies(built, tile, probes, precision, 3)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("precision", [*PRECISIONS, "fp64"])
@pytest.mark.parametrize("outputs, probes", SHAPES)
@pytest.mark.parametrize("case", [gather_case, outputs_case], ids=["inputs", "outputs"])
def test_gather_gemm(case, outputs, probes, precision, capability):
    assert_gathers(case(outputs, probes, precision), probes, precision, capability)


@pytest.mark.parametrize("outputs, probes", [(128, 64), (64, 64), (64, 8)])
@pytest.mark.parametrize("case", [gather_case, outputs_case], ids=["inputs", "outputs"])
def test_tiles_that_are_tried(case, outputs, probes, monkeypatch):
    """They run, on tensor cores; how fast they are is for a card to say."""
    for tile in tiles_for(outputs, probes, "tf32x3")[1:]:
        monkeypatch.setitem(globals(), "tile_for", lambda *sizes, tile=tile: tile)
        kernel, types, constants, _ = case(outputs, probes, "tf32x3")
        assert constants["BLOCK_OUT"] == tile.out
        built = built_for(kernel, types, constants, 90, tile.warps, tile.stages)
        assert_fits(built, 90)
        assert {name.split(".")[0] for name in built.products} in ({"wgmma"}, {"mma"}), tile


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("precision", [PRECISION, ROUGH])
@pytest.mark.parametrize("outputs, probes", SHAPES)
@pytest.mark.parametrize("case", [gather_case, outputs_case], ids=["inputs", "outputs"])
def test_gather_gemm_in_parts(case, outputs, probes, precision, capability):
    assert_gathers(case(outputs, probes, precision, False, True), probes, precision, capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("precision", [*PRECISIONS, "fp64"])
@pytest.mark.parametrize("outputs, probes", [(128, 64), (64, 8)])
@pytest.mark.parametrize("case", [gather_case, outputs_case], ids=["inputs", "outputs"])
def test_gather_gemm_that_adds_to_nothing(case, outputs, probes, precision, capability):
    assert_gathers(case(outputs, probes, precision, False), probes, precision, capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("precision", [PRECISION, ROUGH])
@pytest.mark.parametrize("outputs, probes, split", [(128, 64, False), (64, 64, True), (16, 64, False), (64, 8, False)])
def test_weights_packed_per_site(outputs, probes, split, precision, capability):
    kernel, types, constants, tile = sites_case(outputs, probes, precision, split)
    built = built_for(kernel, types, constants, capability, tile.warps, tile.stages)
    assert_multiplies(built, precision, capability, probes)
    assert_fits(built, capability)
    assert_wide_copies(built, tile, probes, precision, 3)


@pytest.mark.parametrize("capability, precision", [
    *((90, precision) for precision in PRECISIONS if precision != "fp32"), (80, PRECISION), (80, ROUGH)])
@pytest.mark.parametrize("outputs, probes", [(128, 64), (64, 64), (64, 8)])
@pytest.mark.parametrize("case", [gather_case, outputs_case], ids=["inputs", "outputs"])
def test_gather_gemm_with_scales(case, outputs, probes, capability, precision):
    """Factors of both sides cost one table more, and no wide copy; without tensor cores they would spill."""
    kernel, types, constants, tile = case(outputs, probes, precision, scales=True)
    built = built_for(kernel, types, constants, capability, tile.warps, tile.stages)
    assert_multiplies(built, precision, capability, probes)
    assert_fits(built, capability)
    assert_wide_copies(built, tile, probes, precision, 4)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("precision", [*PRECISIONS, "fp64"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("outputs, probes", [(128, 64), (64, 8)])
def test_packed_gemm(outputs, probes, transposed, precision, capability):
    kernel, types, constants, tile = packed_case(outputs, probes, precision, transposed)
    built = built_for(kernel, types, constants, capability, tile.warps, tile.stages)
    assert_multiplies(built, precision, capability, probes)
    assert_fits(built, capability)
    assert_wide_copies(built, tile, probes, precision, 1)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("precision", [PRECISION, ROUGH])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("split", [False, True], ids=["added", "parts"])
def test_packed_gemm_added_and_in_parts(split, transposed, precision, capability):
    kernel, types, constants, tile = packed_case(128, 64, precision, transposed, not split, split)
    built = built_for(kernel, types, constants, capability, tile.warps, tile.stages)
    assert_multiplies(built, precision, capability, 64)
    assert_fits(built, capability)
    assert_wide_copies(built, tile, 64, precision, 1)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("real", ["fp32", "fp64"])
@pytest.mark.parametrize("probes", [4, 64])
def test_depthwise(probes, real, capability):
    types = dict.fromkeys(("at", "inside", "outside", "neighbours"), INDICES)
    types |= dict.fromkeys(("weight", "block", "out"), f"*{real}")
    types |= dict.fromkeys(("n_live", "n_channels", "n_taps", "probe_units", "in_units", "out_units"), "i32")
    constants = {"ACCUMULATE": True, "UNIT": min(16, probes), "BLOCK_ROWS": sums_for(probes)[0],
                 "BLOCK_PROBES": probes}
    built = built_for(depthwise.depthwise_kernel, types, constants, capability)
    assert_fits(built, capability)
    assert f"fma.rn.f{real[2:]}" in built.ptx
    assert re.search(r"ld\.global\.(v4\.b32|v2\.b64)", built.ptx) or built.copies[16], "sixteen bytes at a time"
