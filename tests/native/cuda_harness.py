"""The CUDA kernels' own text compiled for the CPU, block by block and thread by thread (csrc/cuda/block.cuh)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import pytest

from specxai.native import cuda

SOURCES = Path(__file__).parents[2] / "csrc"


@cache
def emulated():
    """The module on the CPU's memory; skips where there is no compiler or no pybind11."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler to build the emulation with")
    pybind11 = pytest.importorskip("pybind11", reason="the emulation's binding needs pybind11")
    folder = Path(tempfile.mkdtemp(prefix="specxai-cuda-"))
    try:
        file = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
        command = [compiler, "-x", "c++", "-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden",
                   "-DSPECXAI_CUDA_EMULATED", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", f"-I{SOURCES}",
                   f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}",
                   SOURCES / "bindings/cuda.cpp", *sorted((SOURCES / "cuda").glob("*.cu")), "-o", file]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        spec = importlib.util.spec_from_file_location("_cuda", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        shutil.rmtree(folder)  # a loaded library stays


@pytest.fixture
def on_cpu(monkeypatch):
    """`specxai.native.cuda` runs the emulation, on tensors of the CPU."""
    monkeypatch.setattr(cuda, "_module", emulated())


def both_orders(run):
    """What `run` returns, a tensor or several, which must be bit for bit the same in whatever order threads and blocks
    go: a barrier that is missing makes it differ."""
    found = []
    for backward in (False, True):
        emulated().set_backward(backward)
        try:
            got = run()
        finally:
            emulated().set_backward(False)
        found.append(got if isinstance(got, tuple) else (got,))
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        assert one.nan_to_num(nan=7).equal(other.nan_to_num(nan=7)), "the order of threads shows"
    return found[0] if len(found[0]) > 1 else found[0][0]
