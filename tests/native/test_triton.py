"""The Triton stage: values in the interpreter, and code generated for sm_90 without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

# Its own process: TRITON_INTERPRET is read when a kernel is defined.
INTERPRETED = """
import torch
from specxai.kernels.gated_linear import gated_linear

torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 5e-14)):
    for m, n, k in ((1, 1, 1), (70, 133, 9), (65, 63, 65)):
        W = torch.randn(m, n, dtype=dtype)
        subset = dict(rows=torch.arange(0, m, 2), cols=torch.arange(0, n, 3))
        subset["scale"] = torch.randn(len(subset["rows"]), dtype=dtype)
        for live in ({}, subset, dict(rows=torch.arange(0)), dict(cols=torch.arange(0))):
            A = W.double()
            A = A[live["rows"]] if "rows" in live else A
            A = A[:, live["cols"]] if "cols" in live else A
            A = live["scale"].double()[:, None] * A if "scale" in live else A
            for transpose in (False, True):
                A_t = A.mT if transpose else A
                Z = torch.randn(A_t.shape[1], k, dtype=dtype)
                got, want = gated_linear(W, Z, transpose=transpose, **live), A_t @ Z.double()
                assert got.shape == want.shape and got.dtype == dtype
                if got.numel():
                    error = (got - want).abs().max() / want.abs().max().clamp_min(1e-300)
                    assert error <= tolerance, (dtype, m, n, k, list(live), transpose, error)
for wrong, message in ((torch.zeros(3, 2), "3 rows but the stage reads 5"), (torch.zeros(5, 2).double(), "float64")):
    try:
        gated_linear(torch.zeros(4, 5), wrong)
    except (TypeError, ValueError) as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
print("ok")
"""


def test_values_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-P", "-c", INTERPRETED],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.stdout.strip() == "ok", done.stderr


@pytest.mark.parametrize("transpose", [False, True], ids=["map", "adjoint"])
@pytest.mark.parametrize(
    "real, precision, instruction",
    [
        ("fp32", "ieee", r"fma\.rn\.f32"),
        ("fp32", "tf32x3", r"wgmma\.\S*\.tf32"),
        ("fp64", "ieee", r"mma\S*\.f64|fma\.rn\.f64"),
    ],
)
def test_compiles_for_sm_90_without_spills(real, precision, instruction, transpose, tmp_path):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from specxai.kernels import gated_linear as stage

    reals = dict.fromkeys(("weight", "scale", "block", "out"), f"*{real}")
    indices = dict.fromkeys(("rows", "cols"), "*i64")
    sizes = dict.fromkeys(("n_out", "n_in", "n_probes"), "i32") | dict.fromkeys(("stride_out", "stride_in"), "i64")
    constants = {
        "TRANSPOSE": transpose,
        "HAS_ROWS": True,
        "HAS_COLS": True,
        "HAS_SCALE": True,
        "PRECISION": precision,
        "BLOCK_OUT": stage.BLOCK_OUT,
        "BLOCK_PROBES": stage.BLOCK_PROBES,
        "BLOCK_IN": stage.BLOCK_IN,
    }
    kernel = stage.gated_linear_kernel
    signature = reals | indices | sizes | dict.fromkeys(constants, "constexpr")
    aligned = (*reals, *indices, "n_probes")
    source = ASTSource(
        kernel,
        {name: signature[name] for name in kernel.arg_names},
        constants,
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True}).asm["ptx"]
    assert re.search(instruction, ptx)

    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    if not ptxas.exists():
        pytest.skip("this Triton brings no ptxas")
    (tmp_path / "stage.ptx").write_text(ptx)
    report = subprocess.run(
        [ptxas, "-v", "--gpu-name=sm_90a", tmp_path / "stage.ptx", "-o", tmp_path / "stage.cubin"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in report, report
