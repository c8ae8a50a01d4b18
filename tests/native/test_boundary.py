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
