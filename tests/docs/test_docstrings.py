"""Docstrings of the house's form become Markdown that says the same."""

from __future__ import annotations

import doctest

import pytest


@pytest.fixture(scope="module")
def docstrings(tool):
    return tool("docstrings")


@pytest.mark.parametrize("name", ["docstrings", "supported_ops"])
def test_examples_of_the_tools_run(tool, name):
    result = doctest.testmod(tool(name))
    assert result.failed == 0
    assert result.attempted > 0


@pytest.mark.parametrize("text, want", [
    ("Blocks (k, *S) and [row][probe].", r"Blocks (k, \*S) and \[row\]\[probe\]."),
    ("As in `a[0] * b`.", "As in `a[0] * b`."),
    ("One sentence.  Another sentence.", "One sentence.  Another sentence."),
    ("x, y   numbers", "- **`x, y`** numbers"),
    ("Example:\n    >>> 1\n    1", "**Example**\n\n```pycon\n>>> 1\n1\n```"),
    ("Shapes: x (n,) -> (m,).\nErrors: ValueError for more.",
     "- **`Shapes`** x (n,) -> (m,).\n- **`Errors`** ValueError for more."),
])
def test_forms(docstrings, text, want):
    assert docstrings.markdown(text) == want
