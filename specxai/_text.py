"""Text from a model or a file on its way to a terminal."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    r"""The text with what a terminal would obey instead of show written out: a name may hold anything.

    >>> printable("block\x1b[2J.0 ÷ 2")
    'block\\x1b[2J.0 ÷ 2'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
