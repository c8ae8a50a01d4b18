"""How Triton kernels are tested without a GPU: values in the interpreter, code generated for a GPU elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")


def interpret(code: str) -> None:
    """Run `code`, which ends with print("ok"), under Triton's interpreter: a process of its own, since
    TRITON_INTERPRET is read when a kernel is defined."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.stdout.strip() == "ok", done.stderr


def ptx_of(kernel, types: dict[str, str], constants: dict, aligned=(), capability: int = 90) -> str:
    """The kernel's PTX.

    types       Triton's name of the type of each argument that is no constant, as "*fp32" or "i32"
    aligned     arguments that are multiples of 16, or point to such places
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        kernel,
        {name: signature[name] for name in kernel.arg_names},
        constants,
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True}).asm["ptx"]


def assert_no_spills(ptx: str, folder: Path, architecture: str = "sm_90a") -> None:
    """NVIDIA's assembler keeps all of it in registers; skips where this Triton brings no assembler."""
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    if not ptxas.exists():
        pytest.skip("this Triton brings no ptxas")
    (folder / "kernel.ptx").write_text(ptx)
    report = subprocess.run(
        [ptxas, "-v", f"--gpu-name={architecture}", folder / "kernel.ptx", "-o", folder / "kernel.cubin"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in report, report
