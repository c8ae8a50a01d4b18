"""What the wrapper refuses, and what it says; how the module and its instruction set are found."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from specxai import native
from specxai.native.module import compiled


def test_binding_checks_sizes():
    module = compiled()
    sizes = {"n_left": 2, "n_right": 2, "n_rows": 2}
    pointers = {"left": 0, "right": 0, "output": 0}
    with pytest.raises(ValueError, match="left is a null pointer but 4 elements"):
        module.gram_f32(**sizes, **pointers, level=None)
    with pytest.raises(ValueError, match="left = -1 is negative"):
        module.gram_f32(**(sizes | {"n_left": -1}), **pointers, level=None)
    with pytest.raises(ValueError, match="left of 2 x 4611686018427387904 elements is too large"):
        module.gram_f32(**(sizes | {"n_left": 2**62}), **pointers, level=None)


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Python on `code`, outside the checkout's folder so that the installed package is found."""
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_module_is_installed():
    ok, reason = native.available()
    assert ok, reason
    assert native.simd_level() in native.supported_levels()


def test_missing_module_says_why():
    done = run(
        "import sys; sys.modules['specxai._native'] = None\n"
        "import specxai, torch\n"
        "from specxai import native\n"
        "print(native.available())\n"
        "native.gram(torch.ones(1, 1))"
    )
    assert done.stdout.startswith("(False, 'the compiled module specxai._native cannot be imported (")
    assert "RuntimeError: the compiled module specxai._native cannot be imported" in done.stderr
    assert "pip install" in done.stderr


def test_import_needs_neither_triton_nor_the_kernels():
    done = run("import sys, specxai, specxai.native; print('triton' in sys.modules, 'specxai.kernels' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_a_level_is_one_of_three():
    with pytest.raises(RuntimeError, match="'avx1024'; expected one of scalar, avx2, avx512"):
        native.gram(torch.ones(1, 1), level="avx1024")


@pytest.mark.parametrize("level", native.supported_levels() if native.available()[0] else [])
def test_environment_forces_a_level(level):
    done = run("from specxai import native; print(native.simd_level())", SPECXAI_SIMD=level)
    assert done.stdout.strip() == level, done.stderr


def test_environment_is_validated():
    done = run("from specxai import native; native.simd_level()", SPECXAI_SIMD="sse9")
    assert "RuntimeError: SPECXAI_SIMD is 'sse9'; expected one of scalar, avx2, avx512" in done.stderr


@pytest.mark.skipif("avx512" in native.supported_levels(), reason="this CPU has every level")
def test_environment_cannot_ask_for_more_than_the_cpu_has():
    done = run("from specxai import native; native.simd_level()", SPECXAI_SIMD="avx512")
    assert "which this CPU or this build cannot run; it can run: scalar" in done.stderr


def test_what_is_empty_in_one_size_may_be_endless_in_the_other():
    assert native.gram(torch.empty(2**40, 0)).shape == (0, 0)
    assert native.gram(torch.empty(2**40, 0), torch.empty(2**40, 0)).shape == (0, 0)
    assert native.coefficients(torch.empty(0, 2**40), torch.empty(2**40, 0)).shape == (0, 0)
    cells, near = torch.ones(2, 4, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.int32)
    assert native.any_neighbour(cells[:, :0], near).shape == (3, 0)
    assert not native.any_neighbour(cells, near[:, :0]).any()
    assert native.subtract(torch.empty(0, 3), torch.empty(0, 2).double(), torch.ones(3, 2)).tolist() == [[1.0] * 2] * 3


@pytest.mark.parametrize("call, message", [
    (lambda: native.any_neighbour(torch.zeros(2, 11, 3, dtype=torch.bool), torch.zeros(24, dtype=torch.int32)),
     r"cells must have 2 dimension.*\(2, 11, 3\)"),
    (lambda: native.any_neighbour(torch.zeros(2, 1, dtype=torch.bool), torch.zeros(2, dtype=torch.int32)),
     "neighbours must have 2 dimension"),
    (lambda: native.count_distinct(torch.zeros(1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)),
     "at least one; got none"),
    (lambda: native.count_distinct(torch.zeros(1, dtype=torch.int32), torch.zeros(1, 2, dtype=torch.int32)),
     "begin must have 1 dimension"),
    (lambda: native.map_rows(torch.zeros(1, dtype=torch.int32), torch.zeros(2, 2, dtype=torch.int32)),
     "table must have 1 dimension"),
    (lambda: native.gram(torch.ones(3, 2, dtype=torch.complex64).conj().imag), "lazy negative view"),
    (lambda: native.GatherGemm(inside=i32([0]), outside=i32([0]), neighbours=i32([0]), weight=torch.ones(1, 1)),
     r"weight must be a tensor \(width, taps, depth\), got \(1, 1\)"),
    (lambda: native.RowSum(to=i32(0), source=i32(0), dtype=torch.float32).run(torch.ones(1, 2), torch.ones(1, 8), 5),
     "n_probes=5: the input holds 2"),
    (lambda: native.multiply_add_peak(seconds=float("inf")), "give more than 0 and at most 60"),
    (lambda: native.gram(torch.ones(3, 2, device="meta")), r"X must be a contiguous matrix .* on meta"),
])
def test_other_wrappers_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def i32(*rows):
    return torch.tensor(rows, dtype=torch.int32)


def test_random_arguments_never_crash():
    """In a process of its own, which a crash would end."""
    done = run(
        "import random, torch\n"
        "from specxai import native\n"
        "choose = random.Random(0)\n"
        "def tensor():\n"
        "    shape = [choose.choice([0, 1, 2, 3, 8, 17]) for _ in range(choose.choice([0, 1, 1, 2, 2, 2, 3]))]\n"
        "    dtype = choose.choice([torch.int32] * 3 + [torch.bool, torch.float32, torch.float32, torch.float64,"
        " torch.int64])\n"
        "    made = torch.randint(-2, 5, shape).to(dtype)\n"
        "    return choose.choice([made, made, made, made.T if made.ndim == 2 else made, made[..., ::2] if made.ndim"
        " else made, made.to_sparse() if made.ndim else made, None, 3])\n"
        "def gemm():\n"
        "    stage = native.GatherGemm(inside=tensor(), outside=tensor(), neighbours=tensor(), weight=tensor(),"
        " groups=choose.choice([1, 1, 0, -1, 2]), across=choose.choice([None, None, 0, 2]))\n"
        "    stage.run(tensor(), tensor(), level=choose.choice([None, 'scalar', 'avx2']))\n"
        "def row_sum():\n"
        "    stage = native.RowSum(to=tensor(), source=tensor(), dtype=torch.float32, scale=choose.choice([None,"
        " tensor()]))\n"
        "    stage.run(tensor(), tensor(), choose.choice([-1, 0, 1, 3, 9]))\n"
        "calls = [lambda: native.map_rows(tensor(), tensor()), lambda: native.count_distinct(tensor(), tensor()),\n"
        "    lambda: native.any_neighbour(tensor(), tensor()), lambda: native.gram(tensor(), tensor()),\n"
        "    lambda: native.coefficients(tensor(), tensor()), lambda: native.subtract(tensor(), tensor(), tensor()),\n"
        "    gemm, row_sum]\n"
        "done = refused = 0\n"
        "for _ in range(6000):\n"
        "    try:\n"
        "        choose.choice(calls)()\n"
        "        done += 1\n"
        "    except (TypeError, ValueError, IndexError, RuntimeError):\n"
        "        refused += 1\n"
        "print(done > 0, refused > 0, done + refused)"
    )
    assert done.stdout.split() == ["True", "True", "6000"], (done.returncode, done.stderr)
