"""Code that Triton generates for attention's adjoint, for cards that are not here: which instructions multiply, how
wide copies are, and that registers and shared memory suffice.  Values are tested in tests/kernels."""

from __future__ import annotations

import pytest
import torch

from specxai.kernels import attention
from specxai.kernels.attention import cuts_for
from triton_harness import SHARED_LIMIT, assert_no_atomics, built_for

CAPABILITIES = (80, 90)
REALS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
MODES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
HELD = ("pattern", "query", "key", "value")
# Numbers that are multiples of 16 where widths and lengths are, as Triton finds at a launch.
UNALIGNED = ("scale", "n_columns", "n_parts", "n_stack", "together")


def built(kernel, dtype: torch.dtype, held: torch.dtype, mode: str, cut, panels: int, capability: int):
    """The kernel of a cut, of sizes that are multiples of 16 and contiguous rows."""
    constants = {"MODE": mode, "BLOCK_ROWS": cut.rows, "BLOCK_KEYS": cut.keys}
    if kernel is attention.whole_kernel:
        constants |= {"COLUMNS": cut.columns, "BLOCK_WIDTH": cut.panel, "BLOCK_VALUE": cut.panel}
    elif kernel is attention.output_kernel:
        constants |= {"CAUSAL": True, "PANEL": cut.panel, "SUM_MODE": "tf32x3" if dtype in MODES else mode}
    else:
        constants |= {"CAUSAL": True, "PANEL": cut.panel, "PANELS": panels}
    if "key_step" in kernel.arg_names:
        constants["key_step"] = 1
    types = {name: "i32" for name in kernel.arg_names if name not in constants}
    types |= {name: REALS[dtype] for name in types if name == "cotangent" or name in ("made_query", "made_key",
                                                                                      "made_value")}
    types |= {name: REALS[held] for name in types if name in HELD}
    types |= {name: "*fp32" for name in types if name in ("outputs", "sums")}
    if "scale" in types:
        types["scale"] = "fp32"
    aligned = [name for name in types if name not in UNALIGNED]
    return built_for(kernel, types, constants, capability, cut.warps, cut.stages, aligned)


def assert_fits(made, mode: str, capability: int) -> None:
    """Tensor cores unless in float32, registers and shared memory that suffice, sixteen bytes at a time."""
    found = {name.split(".")[0] for name in made.products}
    assert found <= {"wgmma", "mma"}
    assert bool(found) == (mode != "ieee"), made.products
    if mode in ("bf16", "fp16"):
        kind = {"bf16": "bf16.bf16", "fp16": "f16.f16"}[mode]
        assert any(kind in name for name in made.products), made.products
    assert made.spills == 0, f"{made.spills} bytes of the stack"
    assert made.shared <= SHARED_LIMIT[capability], f"{made.shared >> 10} KB"
    assert_no_atomics(made.ptx)
    assert made.copies[16] or "ld.global.v4.b32" in made.ptx, "sixteen bytes at a time"


def kernels_of(cuts):
    return (attention.whole_kernel,) if len(cuts) == 1 else (attention.query_kernel, attention.key_kernel)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("held", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
@pytest.mark.parametrize("length", [16, 32, 64, 128, 512])
@pytest.mark.parametrize("width", [16, 64, 128, 256])
def test_blocks_of_16_bits(width, length, held, capability):
    cuts = cuts_for(2048, 32, length, length, width, torch.bfloat16, held, capability=capability)
    for kernel, cut in zip(kernels_of(cuts), cuts, strict=True):
        made = built(kernel, torch.bfloat16, held, "bf16", cut, -(-width // cut.panel), capability)
        assert_fits(made, "bf16", capability)
        if capability >= 90 and length >= 64 and width <= 128:
            assert {name.split(".")[0] for name in made.products} == {"wgmma"}, made.products


@pytest.mark.parametrize("held", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_half_precision(held):
    cuts = cuts_for(2048, 32, 128, 128, 64, torch.float16, held)
    for kernel, cut in zip(kernels_of(cuts), cuts, strict=True):
        assert_fits(built(kernel, torch.float16, held, "fp16", cut, 1, 90), "fp16", 90)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "tf32x3", "bf16x3", "bf16x6"])
@pytest.mark.parametrize("width", [64, 256])
def test_blocks_of_float32(width, precision, capability):
    cuts = cuts_for(2048, 32, 128, 128, width, torch.float32, None, precision, capability)
    mode = "ieee" if precision == "fp32" else precision
    for kernel, cut in zip(kernels_of(cuts), cuts, strict=True):
        made = built(kernel, torch.float32, torch.float32, mode, cut, -(-width // cut.panel), capability)
        assert_fits(made, mode, capability)


@pytest.mark.parametrize("dtype, mode", [(torch.bfloat16, "bf16"), (torch.float32, "tf32x3"), (torch.float32, "ieee")])
def test_outputs(dtype, mode):
    cut = attention.OUTPUTS
    made = built(attention.output_kernel, dtype, dtype, mode, cut, 1, 90)
    assert_fits(made, "tf32x3" if mode == "bf16" else mode, 90)
