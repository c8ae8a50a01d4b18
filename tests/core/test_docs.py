"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import specxai

# The compiled module, and programs that run on import.
SKIPPED = {"specxai._native", "specxai.__main__", "specxai.kernels"}
MODULES = ["specxai", *sorted(m.name for m in pkgutil.walk_packages(specxai.__path__, "specxai.")
                              if m.name not in SKIPPED and not m.name.startswith("specxai.kernels."))]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_examples_are_found():
    finder = doctest.DocTestFinder()
    with_examples = [name for name in MODULES
                     if any(case.examples for case in finder.find(importlib.import_module(name)))]
    assert {"specxai", "specxai.affine.captured", "specxai.svd.solve"} <= set(with_examples)
