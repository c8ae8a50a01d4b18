"""Values are computed in Triton's interpreter, which a process chooses before it defines a kernel: `make test-kernels`
runs this folder with TRITON_INTERPRET=1, and tests/native/test_triton.py does so within the whole suite."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")


def pytest_collection_modifyitems(items):
    if os.environ.get("TRITON_INTERPRET") != "1":
        skip = pytest.mark.skip(reason="needs Triton's interpreter: TRITON_INTERPRET=1, as in make test-kernels")
        for item in items:
            if "tests/kernels/" in item.path.as_posix():
                item.add_marker(skip)
