"""Near misses of a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near(name: str, names: Iterable[str]) -> str:
    """A question to append to an error.

    >>> near("vgg11bn", ["vgg11_bn", "alexnet"]), near("x", ["alexnet"])
    ('; did you mean vgg11_bn?', '')
    """
    close = difflib.get_close_matches(name, list(names), n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""
