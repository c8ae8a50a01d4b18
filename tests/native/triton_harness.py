"""How Triton kernels are tested without a GPU: values in the interpreter, code generated for a GPU elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


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


# Bytes of shared memory that a program may have.
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10}


@dataclass(frozen=True)
class Built:
    """A kernel as compiled for a card.

    products   the matrix instructions in it, and how many
    copies     bytes of an asynchronous copy -> how many
    spills     bytes of the stack
    shared     bytes of shared memory
    """

    ptx: str
    products: Counter
    copies: Counter
    registers: int
    spills: int
    shared: int


def built_for(kernel, types: dict[str, str], constants: dict, capability: int = 90, warps: int = 4, stages: int = 3,
              aligned: Iterable[str] | None = None) -> Built:
    """The kernel compiled by Triton and NVIDIA's assembler; skips where this Triton brings no assembler.

    types       Triton's name of the type of each argument that is no constant, as "*fp32" or "i32"
    aligned     arguments that are multiples of 16, or point to such places; all pointers if None
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    aligned = [name for name in types if types[name].startswith("*")] if aligned is None else aligned
    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        kernel,
        {name: signature[name] for name in kernel.arg_names},
        constants,
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    if not (TOOLS / "ptxas").exists() or not (TOOLS / "cuobjdump").exists():
        pytest.skip("this Triton brings no ptxas and cuobjdump")
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32),
                          options={"enable_fp_fusion": True, "num_warps": warps, "num_stages": stages})
    ptx = made.asm["ptx"]
    copies = re.findall(r"cp\.async\.c[ag]\.\S+ \[[^]]*\], \[[^]]*\], (0x\w+|\d+)", ptx)
    registers, spills = _resources(made.asm["cubin"])
    return Built(ptx, Counter(re.findall(r"(?:wgmma\.mma_async|mma\.sync)\.\S+", ptx)),
                 Counter(int(size, 0) for size in copies), registers, spills, made.metadata.shared)


def accesses(ptx: str) -> Counter:
    """(ld or st, bytes) of each access of a thread to global memory -> how many."""
    found = re.findall(r"\b(ld|st)\.global[\w.:]*?(?:\.v(\d))?\.[bsuf](\d+)\s", ptx)
    return Counter((kind, int(lanes or 1) * int(bits) // 8) for kind, lanes, bits in found)


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers of a thread, bytes of its stack and local memory)."""
    told = _cuobjdump("-res-usage", cubin)
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", told).groups())
    return registers, stack + local


def _cuobjdump(option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def assert_no_atomics(ptx: str) -> None:
    assert not re.search(r"\b(atom|red)\.", ptx.replace("red.shared.", "")), "sums by atomics have no order"
