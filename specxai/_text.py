"""Names that others chose, as text that is safe to print."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    r"""`text` on one line, every character that a terminal would obey and not show as its escape.

    >>> printable("relu\x1b[2J\n"), printable("größe")
    ('relu\\x1b[2J\\n', 'größe')
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
