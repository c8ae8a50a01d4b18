"""Products whose caller looks at the end whether the operator's weights are still the same.

What an operator was made from may change between two products, so that each one looks at samples of it.  On a device
every look is a wait, and a solver makes hundreds of products: it asks `ensure_current` once instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["checked_later", "is_checked_later"]

_here = threading.local()


@contextmanager
def checked_later() -> Iterator[None]:
    """The caller asks `ensure_current` of the operators whose products this thread makes inside, after them.

    >>> with checked_later():
    ...     is_checked_later()
    True
    >>> is_checked_later()
    False
    """
    _here.depth = getattr(_here, "depth", 0) + 1
    try:
        yield
    finally:
        _here.depth -= 1


def is_checked_later() -> bool:
    """Does whoever makes this thread's products look afterwards?"""
    return getattr(_here, "depth", 0) > 0
