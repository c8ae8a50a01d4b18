"""The table of supported operations, from the rules themselves.

What a rule makes is read from its source: which fields of `Term`, `Gate` and `LinearNode` it and the functions of
`specxai.rules` that it calls may set.  A rule may set fewer for some arguments, never more.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable
from functools import cache
from textwrap import dedent

from specxai.rules import RULES, Gate, LinearNode, Term

# Field -> what a plan makes of it, the most telling first.
STRUCTURES = {
    "convolution": "a gather",
    "fully_connected": "a gather",
    "joined": "no stage: a join",
    "entries": "a sum",
    "picks": "no stage: a pick",
}
POSITIONAL = {cls.__name__: [field.name for field in dataclasses.fields(cls)] for cls in (Term, Gate, LinearNode)}


@dataclasses.dataclass(frozen=True)
class Row:
    """One rule: the overloads that it is for, the file of its family, what it says of itself and what it makes."""

    overloads: tuple[str, ...]
    family: str
    name: str
    sentence: str
    map: str
    structures: tuple[str, ...]


def rows() -> list[Row]:
    """A row for every rule, family by family, in the order of registration."""
    overloads: dict[Callable, list[str]] = {}
    for operator, rule in RULES.items():
        overloads.setdefault(rule, []).append(str(operator).removeprefix("aten."))
    return [_row(rule, tuple(names)) for rule, names in sorted(overloads.items(), key=lambda item: item[0].__module__)]


def _row(rule: Callable, overloads: tuple[str, ...]) -> Row:
    fields = made_by(rule)
    kind = "linear"
    if "pattern" in fields:
        kind = "piecewise linear"
    elif "gate" in fields:
        kind = "smooth"
    elif "curved" in fields:
        kind = "curved"
    family = rule.__module__.rpartition(".")[2]
    return Row(overloads, family, rule.__name__, first_sentence(rule), kind,
               tuple(name for name in STRUCTURES if name in fields))


def first_sentence(rule: Callable) -> str:
    """The docstring up to the first full stop or paragraph.

    >>> first_sentence(rows)
    'A row for every rule, family by family, in the order of registration.'
    """
    text = re.sub(r"\s+", " ", (inspect.getdoc(rule) or "").split("\n\n")[0])
    return re.split(r"(?<=[.])\s+(?=[A-Z])", text)[0]


@cache
def made_by(function: Callable) -> frozenset[str]:
    """Fields that the function, or one of the rules' functions that it calls, may set.

    A gate with a `pattern` is one of a piecewise linear function; that of a smooth one has None there.
    """
    found: set[str] = set()
    parameters = set(inspect.signature(function).parameters)

    def is_set(value: ast.AST) -> bool:
        """Not None, and not handed on: a parameter is set where the caller gives it."""
        handed_on = isinstance(value, ast.Name) and value.id in parameters
        return not handed_on and not (isinstance(value, ast.Constant) and value.value is None)

    for node in ast.walk(ast.parse(dedent(inspect.getsource(function)))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        found |= {word.arg for word in node.keywords if word.arg and is_set(word.value)}
        found |= {field for field, value in zip(POSITIONAL.get(name, ()), node.args, strict=False) if is_set(value)}
        if name == "Gate":
            found.add("gate")
        called = function.__globals__.get(name)
        if inspect.isfunction(called) and called.__module__.startswith("specxai.rules.") and called is not function:
            found |= made_by(called)
    return frozenset(found)


def page() -> str:
    """The page as Markdown."""
    lines = [PREFACE.format(overloads=len(RULES), rules=len(set(RULES.values())))]
    family = None
    for row in rows():
        if row.family != family:
            family = row.family
            lines += ["", f"## `specxai/rules/{family}.py`", "",
                      "| ATen overloads | what the rule does | its map | in a plan |", "| --- | --- | --- | --- |"]
        names = ", ".join(f"`{name}`" for name in row.overloads)
        structure = "; ".join(dict.fromkeys(f"{STRUCTURES[name]} (`{name}`)" for name in row.structures[:1]))
        lines.append(f"| {names} | **{row.name}**: {row.sentence.replace('|', chr(92) + '|')} | {row.map} | "
                     f"{structure or 'an opaque stage'} |")
    return "\n".join(lines) + "\n"


PREFACE = """# Supported operations

This page is made from `specxai.rules.RULES` when the documentation is built.  There are {rules} rules for {overloads}
overloads of ATen's operations.  An operation that has none, and a call with arguments that its rule does not cover, is
run through torch's own derivative: it is right, it is slower, `local.report()` names it, and
[Write a rule](write-a-rule.md) says how it gets a rule of its own.

*Its map* says where the node that the rule makes holds.  A *linear* node holds everywhere.  A *piecewise linear* one is
exact in the region of x, that is as long as none of its gates changes.  A *smooth* one is the tangent at x.
A *curved* one has no gate and still changes with x where two values that depend on x meet: their product is linearised,
a stopped gradient is held.

*In a plan* names the stage that the node becomes on an engine, by the most telling field that the rule may set; the
[glossary](glossary.md) explains the words."""
