"""What nvcc made of the CUDA kernels, read from the module: no card is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from specxai.native import cuda

pytestmark = pytest.mark.skipif(not cuda.available()[0], reason=cuda.available()[1])

CARDS = ("sm_80", "sm_90a", "sm_100")
SHARED = 48 << 10  # bytes that a block has without asking for more
# Registers of a thread, of 65,536 that a multiprocessor has: so many that blocks of this size keep it busy.
MOST_REGISTERS = {"GatherIf": 128, "GatherId": 208, "Part": 128, "PassI": 80, "Solve": 96, "": 64}


def cuobjdump(*arguments: str) -> str:
    """What NVIDIA's tool says of the module; it comes with Triton where no toolkit has it."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        triton = pytest.importorskip("triton", reason="no cuobjdump, and no Triton that brings one")
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        if not tool.exists():
            pytest.skip("no cuobjdump, and this Triton brings none")
    done = subprocess.run([tool, *arguments, cuda.compiled().__file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def resources() -> dict[tuple[str, str], dict[str, int]]:
    """(card, kernel) -> registers, bytes of stack, shared and local memory."""
    found, card = {}, ""
    for line in cuobjdump("-res-usage").splitlines():
        if line.startswith("arch = "):
            card = line.removeprefix("arch = ").strip()
        elif line.strip().startswith("Function "):
            kernel = line.strip().removeprefix("Function ").rstrip(":")
        elif "REG:" in line:
            found[card, kernel] = {name: int(n) for name, n in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
    return found


@cache
def instructions(card: str) -> dict[str, str]:
    """kernel -> its machine code."""
    parts = cuobjdump("-sass", "-arch", card).split("Function : ")[1:]
    return {part.split(None, 1)[0]: part for part in parts}


def test_every_card_has_every_kernel():
    cards = {card: {re.sub(r"GLOBAL__N__\w{8}", "", kernel) for other, kernel in resources() if other == card}
             for card in CARDS}
    assert {card for card, kernels in cards.items() if kernels} >= {"sm_80", "sm_90a"}  # sm_100 with nvcc 12.8
    assert len(cards["sm_80"]) == 34
    assert all(kernels in (set(), cards["sm_80"]) for kernels in cards.values())
    assert "sm_80.ptx" in cuobjdump("-lptx"), "cards to come compile it for themselves"


def test_nothing_spills_and_blocks_fit():
    for (card, kernel), used in resources().items():
        where = f"{kernel} on {card}: {used}"
        assert used["STACK"] == used["LOCAL"] == 0, where
        assert used["SHARED"] <= SHARED, where
        most = next(n for name, n in MOST_REGISTERS.items() if name in kernel)
        assert used["REG"] <= most, where


@pytest.mark.parametrize("card", ["sm_80", "sm_90a"])
def test_instructions(card):
    for kernel, code in instructions(card).items():
        assert not re.search(r"\b(ATOM|ATOMG|ATOMS|RED)\b", code), f"sums by atomics have no order: {kernel}"
        assert not re.search(r"\b[HIQD]G?MMA\b", code), f"tensor cores round factors, or were not meant: {kernel}"
        assert not re.search(r"\b(LDL|STL)\b", code), f"{kernel} has local memory"
        gather = re.search(r"GatherI([fd])Li(\d+)ELb([01])", kernel)
        if gather:
            kind, probes, lines = gather.groups()
            assert ("LDG.E.128" in code) == (lines == "1"), f"{kernel} copies sixteen bytes at a time where it can"
            own = {"64": 8 * 4, "16": 4 * 2, "4": 2 * 1}[probes]
            products = len(re.findall(r"\bFFMA\b" if kind == "f" else r"\bDFMA\b", code))
            assert products >= 16 * own, f"{kernel} has {products} multiply-adds: a chunk is to be unrolled"
        elif re.search(r"Part|Solve|Pass", kernel):
            assert "DFMA" in code, f"{kernel} sums in double"
