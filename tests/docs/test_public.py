"""Every public name says what shapes go in and out, which errors it raises, and has an example; test_docs runs it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from textwrap import dedent
from types import FunctionType

import pytest

from specxai._once import once

MODULES = ("specxai", "specxai.operators", "specxai.plan", "specxai.backends", "specxai.rules", "specxai.plots",
           "specxai.spectral", "specxai.svd", "specxai.lens", "specxai.parallel")
# Numbers and tables have no docstring of their own: the module's names them.
CONSTANTS = (str, int, float, tuple, dict)
SHAPE = re.compile(r"\([\w*·+/ ]+,[^()]*\)|\(\*\w+\)|\bshape\b")  # (k, *in), (*in), (entries,), or in words


def names() -> Iterator[tuple[str, object]]:
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            value = getattr(importlib.import_module(module), name)
            if not inspect.ismethod(value):  # a class's, which is looked at with the class
                yield f"{module}.{name}", value


def methods(cls: type) -> Iterator[tuple[str, object]]:
    """The public methods and properties that the class, or a class of ours that it is made from, defines."""
    for name in sorted({name for base in cls.__mro__ if base.__module__.startswith("specxai") for name in vars(base)}):
        found = inspect.getattr_static(cls, name)
        if not name.startswith("_") and isinstance(found, (FunctionType, property, classmethod, once)):
            yield name, found


def function_of(member: object) -> FunctionType | None:
    if isinstance(member, property):
        return member.fget
    if isinstance(member, classmethod):
        return member.__func__
    if isinstance(member, once):
        return member._compute
    return member if isinstance(member, FunctionType) else None


def text(name: str, cls: type | None, member: object) -> str:
    """The docstring, which an override takes from what it overrides."""
    own = getattr(member, "__doc__", None)
    if own or cls is None:
        return inspect.cleandoc(own or "")
    for base in cls.__mro__:
        found = vars(base).get(name)
        if getattr(found, "__doc__", None):
            return inspect.cleandoc(found.__doc__)
    return ""


def raised(function: FunctionType) -> set[str]:
    """Names of the errors in the function's own `raise` statements."""
    tree = ast.parse(dedent(inspect.getsource(function)))
    found = {ast.unparse(node.exc.func) for node in ast.walk(tree)
             if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)}
    return found - {"NotImplementedError"}


def tensors(function: FunctionType) -> bool:
    """Does a tensor go in or out?"""
    return any("Tensor" in str(annotation) for annotation in function.__annotations__.values())


NAMES = dict(names())
CLASSES = {name: value for name, value in NAMES.items() if inspect.isclass(value)}
FUNCTIONS = {name: value for name, value in NAMES.items() if isinstance(value, FunctionType)}
MEMBERS = [(name, cls, member) for name, cls in CLASSES.items() for member, _ in methods(cls)]


def test_all_names_are_looked_at():
    # The first two are functions too, whose docstrings are tested as such; the last holds names of its own.
    packages = {"specxai.capture", "specxai.svd", "specxai.lens"}
    rest = set(NAMES) - set(CLASSES) - set(FUNCTIONS) - packages
    assert all(isinstance(NAMES[name], CONSTANTS) for name in rest), rest
    for name in rest - {"specxai.__version__"}:
        module, _, constant = name.rpartition(".")
        assert f"`{constant}`" in importlib.import_module(module).__doc__, name
    assert len(CLASSES) > 20
    assert len(MEMBERS) > 100


def test_every_name_has_its_place_in_the_reference():
    pages = [page.read_text() for page in (Path(__file__).parents[2] / "docs" / "reference").glob("*.md")]
    shown = [importlib.import_module(path) if path == "specxai.errors" else
             getattr(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2])
             for page in pages for path in re.findall(r"^::: (\S+)", page, re.MULTILINE)]
    for name in {**CLASSES, **FUNCTIONS}:
        assert any(NAMES[name] is value for value in shown), name
    for name in ("specxai.backends.NAMES", "specxai.backends.PLAN_FROM", "specxai.rules.RULES"):
        assert any(f"`{name}`" in page for page in pages), name


@pytest.mark.parametrize("name", sorted({*FUNCTIONS, "specxai.capture.capture", "specxai.svd.svd"}))
def test_functions(name):
    module, _, function = name.rpartition(".")
    value = getattr(importlib.import_module(module), function)
    doc = text(function, None, value)
    assert ">>>" in doc, "no example"
    if tensors(value):
        assert SHAPE.search(doc), "no shapes"
    assert all(error in doc for error in raised(value)), raised(value)


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name):
    cls = CLASSES[name]
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    assert ">>>" in doc, "no example"
    if "__init__" in vars(cls) and not is_dataclass(cls) and cls.__init__.__module__ == cls.__module__:
        doc += inspect.cleandoc(cls.__init__.__doc__ or "")
        assert all(error in doc for error in raised(cls.__init__)), raised(cls.__init__)
    if any("Tensor" in str(annotation) for annotation in inspect.get_annotations(cls).values()):
        assert SHAPE.search(doc), "no shapes"


@pytest.mark.parametrize("name, cls, member", MEMBERS, ids=[f"{name}.{member}" for name, _, member in MEMBERS])
def test_members(name, cls, member):
    found = inspect.getattr_static(cls, member)
    function, doc = function_of(found), text(member, cls, found)
    assert doc, "no docstring"
    assert re.match(r"[^a-z]", doc), "no sentence"
    assert re.search(r"[.?]", doc), "no sentence"
    if tensors(function):
        assert SHAPE.search(doc), "no shapes"
    assert all(error in doc for error in raised(function)), raised(function)
