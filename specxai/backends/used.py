"""Which backend ran the products of some work: asked by whoever reports it, told by the operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["note", "used"]

# Of a context, hence of one thread: another thread's products on the same operator are not this one's.
_names: ContextVar[set[str] | None] = ContextVar("specxai_backends_used", default=None)


@contextmanager
def used() -> Iterator[set[str]]:
    """A set that gets the name of every backend that runs a product meanwhile, in this thread.

    >>> with used() as names:
    ...     note("native")
    >>> names
    {'native'}
    """
    names: set[str] = set()
    token = _names.set(names)
    try:
        yield names
    finally:
        _names.reset(token)


def note(name: str) -> None:
    """A product is about to run on the backend of this name."""
    names = _names.get()
    if names is not None:
        names.add(name)
