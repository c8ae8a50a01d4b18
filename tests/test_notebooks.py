"""The notebooks in examples/ run from top to bottom, and hold no error and no path of the machine that made them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from specxai._vision import import_vision

nbformat = pytest.importorskip("nbformat", reason="notebooks are run by nbclient: pip install 'specxai[test]'")
nbclient = pytest.importorskip("nbclient", reason="notebooks are run by nbclient: pip install 'specxai[test]'")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
SLOWEST = 300  # seconds that one cell may take


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path, tmp_path, monkeypatch):
    # The kernel is a process of its own: it finds what this one finds.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    notebook = nbformat.read(path, as_version=4)
    for module in notebook.metadata.get("specxai", {}).get("requires", []):
        try:
            import_vision(module)
        except ImportError:
            pytest.skip(f"{path.name} needs {module}: pip install 'specxai[paper]'")
    nbclient.NotebookClient(notebook, timeout=SLOWEST, kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path)}}).execute()
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_kept_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    for secret in ("/work/", "/tmp/", "/home/", "/root/", "site-packages"):
        assert secret not in path.read_text("utf-8")
    assert path.stat().st_size < 1_000_000
