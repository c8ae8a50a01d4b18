"""What the wrapper refuses, and what it says; how the module and its instruction set are found."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from specxai import native
from specxai.native.module import compiled


def call(**changes):
    arguments = {"W": torch.zeros(4, 6), "Z": torch.zeros(6, 2)} | changes
    return native.gated_linear(arguments.pop("W"), arguments.pop("Z"), **arguments)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"rows": torch.tensor([0, 4])}, IndexError, r"rows spans 0 to 4, .* units 0 to 3"),
        ({"rows": torch.tensor([-1, 2])}, IndexError, r"rows spans -1 to 2"),
        ({"cols": torch.tensor([6]), "Z": torch.zeros(1, 2)}, IndexError, r"cols spans 6 to 6, .* 0 to 5"),
        ({"rows": torch.tensor([0, 1], dtype=torch.int32)}, TypeError, r"rows must be int64, got torch.int32"),
        ({"rows": torch.ones(4, dtype=torch.bool)}, TypeError, r"mask\.nonzero"),
        ({"rows": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, r"rows must have 1 dimension.*\(2, 2\)"),
        ({"rows": torch.arange(4)[::2]}, ValueError, r"rows must be contiguous.*strides \(2,\)"),
        ({"rows": [0, 1]}, TypeError, r"rows must be a torch.Tensor, got list"),
        ({"W": torch.zeros(6, 4).T}, ValueError, r"W must be contiguous.*transpose=True"),
        ({"Z": torch.zeros(2, 6).T}, ValueError, r"Z must be contiguous.*strides \(1, 6\)"),
        ({"W": torch.zeros(4, 6, dtype=torch.float16)}, TypeError, r"W must be float32 or float64, got torch.float16"),
        ({"W": torch.zeros(4, 6, dtype=torch.int64)}, TypeError, r"got torch.int64"),
        ({"Z": torch.zeros(6, 2, dtype=torch.float64)}, TypeError, r"Z is torch.float64 but W is torch.float32"),
        ({"W": torch.zeros(4, 6, device="meta")}, ValueError, r"W must be a dense CPU tensor, got device meta"),
        ({"Z": torch.zeros(6, 2).to_sparse()}, ValueError, r"Z must be a dense CPU tensor.*sparse"),
        ({"Z": torch.zeros(6)}, ValueError, r"Z must have 2 dimension"),
        ({"Z": torch.zeros(4, 2)}, ValueError, r"Z has 4 rows but the map reads 6 live units; was transpose meant"),
        ({"Z": torch.zeros(5, 2)}, ValueError, r"one row per live unit"),
        ({"transpose": True}, ValueError, r"the adjoint reads 4 live units"),
        ({"scale": torch.ones(3)}, ValueError, r"scale has 3 gates but there are 4 live outputs"),
        ({"scale": torch.ones(4, dtype=torch.float64)}, TypeError, r"scale is torch.float64"),
        ({"W": torch.zeros(4, 6, requires_grad=True)}, ValueError, r"W requires grad.*detach"),
        ({"level": "avx1024"}, RuntimeError, r"'avx1024'; expected one of scalar, avx2, avx512"),
    ],
)
def test_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


def test_gpu_tensor_is_refused():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with pytest.raises(ValueError, match="got device cuda"):
        call(W=torch.zeros(4, 6, device="cuda"))


def test_parameters_are_taken_without_grad_mode():
    with torch.no_grad():
        assert call(W=torch.nn.Parameter(torch.ones(4, 6)), Z=torch.ones(6, 2)).tolist() == [[6.0, 6.0]] * 4


def test_binding_checks_sizes():
    module = compiled()
    sizes = {"weight_rows": 2, "weight_cols": 2, "n_rows": 2, "n_cols": 2, "n_probes": 1}
    pointers = {"weight": 0, "rows": 0, "cols": 0, "scale": 0, "input": 0, "output": 0}
    rest = {"transpose": False, "level": None}
    with pytest.raises(ValueError, match="weight is a null pointer but 4 elements"):
        module.gated_linear_f32(**sizes, **pointers, **rest)
    with pytest.raises(ValueError, match="n_probes = -1 is negative"):
        module.gated_linear_f32(**(sizes | {"n_probes": -1}), **pointers, **rest)
    with pytest.raises(ValueError, match="n_rows must be weight_rows"):
        module.gated_linear_f32(**(sizes | {"n_rows": 1}), **pointers, **rest)
    with pytest.raises(ValueError, match="too large"):
        module.gated_linear_f32(**(sizes | {"n_probes": 2**62}), **pointers, **rest)


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Python on `code`, outside the checkout's folder so that the installed package is found."""
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_missing_module_says_why():
    done = run(
        "import sys; sys.modules['specxai._native'] = None\n"
        "import specxai, torch\n"
        "from specxai import native\n"
        "print(native.available())\n"
        "native.gated_linear(torch.ones(1, 1), torch.ones(1, 1))"
    )
    assert done.stdout.startswith("(False, 'the compiled module specxai._native cannot be imported (")
    assert "RuntimeError: the compiled module specxai._native cannot be imported" in done.stderr
    assert "pip install" in done.stderr


def test_import_needs_neither_triton_nor_the_kernels():
    done = run("import sys, specxai, specxai.native; print('triton' in sys.modules, 'specxai.kernels' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


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
    assert native.gated_linear(torch.empty(2**40, 0), torch.empty(0, 0)).shape == (2**40, 0)
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
        "    lambda: native.gated_linear(tensor(), tensor(), rows=tensor(), cols=tensor(), scale=tensor(),"
        " transpose=choose.random() < .5), gemm, row_sum]\n"
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
