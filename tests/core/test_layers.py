"""The folders are the architecture: a layer imports only the layers above it in docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import specxai

PACKAGE = Path(specxai.__file__).parent
DOCUMENT = Path(__file__).parents[2] / "docs" / "architecture.md"
# Files that are no layer: the package's doors.
DOORS = {"__init__", "__main__"}


def layers() -> list[tuple[str, list[str]]]:
    """(layer, its modules as dotted prefixes) in the order of the document's table."""
    table = []
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and "`" in cells[1]:
            paths = []
            folder = ""
            for path in re.findall(r"`([^`]+)`", cells[1]):
                folder = path.rpartition("/")[0] if "/" in path else folder
                path = path if "/" in path else f"{folder}/{path}"
                paths.append(path.removesuffix(".py").strip("/").replace("/", ".").removesuffix(".__init__"))
            table.append((cells[0], [path.replace("kernels", "specxai.kernels") for path in paths]))
    return table


def layer_of(module: str, table: list[tuple[str, list[str]]]) -> int:
    """Index of the layer whose longest prefix the module has."""
    found = [(len(prefix), i) for i, (_, prefixes) in enumerate(table) for prefix in prefixes
             if module == prefix or module.startswith(prefix + ".")]
    return max(found)[1] if found else -1


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports when it is imported; type-checking and function bodies do not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            visit(child)

    visit(ast.parse(path.read_text()))
    return {name for name in found if name.startswith("specxai.")}


def modules() -> list[tuple[str, Path]]:
    return [(".".join(("specxai", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"), path)
            for path in sorted(PACKAGE.rglob("*.py"))
            if path.relative_to(PACKAGE).with_suffix("").as_posix() not in DOORS]


def test_every_module_has_a_place():
    table = layers()
    assert [name for name, _ in table][:3] == ["errors", "operators", "native"]
    assert [name for name, _ in modules() if layer_of(name, table) < 0] == []


def test_imports_point_downward():
    table, wrong = layers(), []
    for module, path in modules():
        own = layer_of(module, table)
        for name in imports(path):
            if layer_of(name, table) > own:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_the_check_sees_a_wrong_import(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("from specxai.plots import figure\nif TYPE_CHECKING:\n    import specxai.cli\n")
    table = layers()
    assert imports(file) == {"specxai.plots.figure"}
    assert layer_of("specxai.plots.figure", table) > layer_of("specxai.svd.auto", table)


@pytest.mark.parametrize("statement, absent", [
    ("import specxai", ["torch", "triton", "scipy", "matplotlib"]),
    ("import specxai; specxai.linearize", ["triton", "matplotlib", "sklearn", "torchvision"]),
    ("import specxai; specxai.svd", ["triton", "matplotlib"]),
])
def test_imports_stay_light(statement, absent):
    code = f"import sys; {statement}; print([m for m in {absent} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_there():
    for name in specxai.__all__:
        assert getattr(specxai, name) is not None
        assert name in dir(specxai)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        specxai.nothing  # noqa: B018


def test_no_bare_import_of_the_kernels_folder():
    for _, path in modules():
        assert not re.search(r"^\s*(import|from) kernels\b", path.read_text(), re.MULTILINE), path
