"""Docstrings as this project writes them, as Markdown for the reference pages.

A paragraph whose lines are a name, two or more spaces and a text becomes a list; what begins with `>>>` becomes a code
block; characters that Markdown would read as markup are escaped.
"""

from __future__ import annotations

import re
from textwrap import dedent

try:
    import griffe
except ImportError:  # the tests read the functions below without the tools that build the pages
    griffe = None

NAMES = r'[A-Za-z_"][\w".]*(?: \([^)]*\))?'
ALIGNED = re.compile(rf"({NAMES}(?:, {NAMES})*) {{2,}}(\S.*)")
NAMED = re.compile(r"(\w+): (\S.*)")
SECTION = re.compile(r"(Args|Attributes|Example|Raises|Returns):\s*")


def markdown(docstring: str) -> str:
    """The docstring with lists and code blocks as Markdown writes them.

    >>> print(markdown("Add.\\n\\nx   (n,) numbers\\ny   (n,) more\\n    of them"))
    Add.
    <BLANKLINE>
    - **`x`** (n,) numbers
    - **`y`** (n,) more of them
    """
    return "\n\n".join(_paragraph(part) for part in re.split(r"\n\s*\n", docstring.strip("\n")))


def _paragraph(text: str) -> str:
    head, _, rest = text.partition("\n")
    if SECTION.fullmatch(head.strip()) and rest:
        return f"**{head.strip().removesuffix(':')}**\n\n{_paragraph(dedent(rest))}"
    text = dedent(text)
    if text.startswith(">>>"):
        return f"```pycon\n{text}\n```"
    items = _items(text.split("\n"))
    for pattern in (ALIGNED, NAMED):
        if pattern.fullmatch(items[0]) and (pattern is ALIGNED or all(map(pattern.fullmatch, items))):
            return "\n".join(f"- {_item(pattern.fullmatch(item), item)}" for item in items)
    return _escaped(text)


def _items(lines: list[str]) -> list[str]:
    """Lines that are not indented, each with the indented ones that follow it."""
    items: list[str] = []
    for line in lines:
        if items and line.startswith(" "):
            items[-1] += " " + line.strip()
        else:
            items.append(line)
    return items


def _item(match: re.Match | None, item: str) -> str:
    return _escaped(item) if match is None else f"**`{match[1]}`** {_escaped(match[2])}"


def _escaped(text: str) -> str:
    """The text with Markdown's markup escaped, but for what stands between backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*\[\]<|])", r"\\\1", part) for part in parts)


if griffe is not None:

    class HouseDocstrings(griffe.Extension):
        """Turns every docstring to Markdown when it is read."""

        def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
            if obj.docstring is not None:
                obj.docstring.value = markdown(obj.docstring.value)
