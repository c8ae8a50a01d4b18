"""The folders are the architecture: a layer imports only the layers above it in docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import specxai
import specxai.capture

PACKAGE = Path(specxai.__file__).parent
DOCUMENT = Path(__file__).parents[2] / "docs" / "architecture.md"
# Files that are no layer: the package's doors, which open what users name when they name it.
DOORS = {"__init__", "__main__", "capture/__init__"}
COMPILED = {"specxai._native", "specxai._cuda"}  # of the layer that wraps them


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
    """Index of the layer whose longest prefix the module has; behind a door, of the lowest that the door opens."""
    if module in OPENED:
        return max(layer_of(behind, table) for behind in OPENED[module])
    found = [(len(prefix), i) for i, (_, prefixes) in enumerate(table) for prefix in prefixes
             if module == prefix or module.startswith(prefix + ".")]
    return max(found)[1] if found else -1


def _opened() -> dict[str, set[str]]:
    """name of a door, or of what it opens -> the modules behind."""
    found = {f"specxai.{name}": {module} for name, module in specxai._EXPORTS.items()}
    found |= {f"specxai.capture.{name}": {module} for name, module in specxai.capture._EXPORTS.items()}
    found["specxai"], found["specxai.capture"] = set(specxai._EXPORTS.values()), set(specxai.capture._EXPORTS.values())
    return found


OPENED = _opened()


def imports(path: Path) -> set[str]:
    """Modules and names of ours that a file imports, at once, when a function of its runs, or by `import_module`; what
    is for type checkers does not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                child = ast.Module(child.orelse, [])
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{path} imports relative to itself, which this test does not read"
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(("import_module", "__import__")):
                found.update(a.value for a in child.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
            visit(child)

    visit(ast.parse(path.read_text()))
    return {name for name in found if name == "specxai" or name.startswith("specxai.")} - COMPILED


def modules() -> list[tuple[str, Path]]:
    return [(".".join(("specxai", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"), path)
            for path in sorted(PACKAGE.rglob("*.py"))
            if path.relative_to(PACKAGE).with_suffix("").as_posix() not in DOORS]


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules that import each other."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        path.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
            if other in path:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == order[name]:
            circle = set(path[path.index(name):])
            del path[path.index(name):]
            if len(circle) > 1:
                found.append(circle)

    for name in graph:
        if name not in order:
            visit(name)
    return found


def test_every_module_has_a_place():
    table = layers()
    assert [name for name, _ in table][:3] == ["errors", "operators", "native"]
    assert [name for name, _ in modules() if layer_of(name, table) < 0] == []


def test_imports_point_downward():
    table, wrong = layers(), []
    for module, path in modules():
        own = layer_of(module, table)
        for name in imports(path):
            found = layer_of(name, table)
            if found > own or found < 0:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_no_two_modules_import_each_other():
    paths = dict(modules())
    graph = {}
    for module, path in paths.items():
        wanted = {behind for name in imports(path) for behind in OPENED.get(name, {name})}
        graph[module] = {name if name in paths else name.rpartition(".")[0] for name in wanted} & set(paths) - {module}
    assert circles(graph) == []


def test_a_door_holds_nothing_itself():
    table = layers()
    for door in ("__init__", "capture/__init__"):
        for name in imports(PACKAGE / f"{door}.py"):
            assert layer_of(name, table) <= [row[0] for row in table].index("program"), name


def test_the_check_sees_a_wrong_import(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("from specxai.plots import figure\nif TYPE_CHECKING:\n    import specxai.cli\nelse:\n"
                    "    import specxai.zoo\ndef f():\n    from specxai import linearize\n"
                    "    import_module('specxai.bench.run')\n")
    table = layers()
    assert imports(file) == {"specxai.plots.figure", "specxai.zoo", "specxai.linearize", "specxai.bench.run"}
    assert layer_of("specxai.plots.figure", table) > layer_of("specxai.svd.auto", table)
    assert layer_of("specxai.linearize", table) == layer_of("specxai.affine.local", table)
    assert layer_of("specxai", table) == layer_of("specxai.spectral", table)
    assert layer_of("specxai.nowhere", table) < 0
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [{"b", "c"}]


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
