"""Attributes that are computed once, whole before they are shared, whatever the number of threads."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import Any, Generic, TypeVar, overload

__all__ = ["once"]

T = TypeVar("T")
_LOCK = "_once_lock"


class once(Generic[T]):
    """A property computed at its first access and kept in the instance, under a lock of the instance's own.

    `functools.cached_property` has no lock from Python 3.12 on, and one for all instances before.  The lock may be
    taken again by the same thread: one such attribute may need another of the same instance.

    >>> class Circle:
    ...     @once
    ...     def area(self):
    ...         print("computed")
    ...         return 3
    >>> circle = Circle()
    >>> circle.area, circle.area
    computed
    (3, 3)
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> once[T]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...
    def __get__(self, instance, owner=None):
        if instance is None:
            return self
        values = vars(instance)  # found there first from then on: this class has no __set__
        with values.setdefault(_LOCK, RLock()):
            if self._name not in values:
                values[self._name] = self._compute(instance)
            return values[self._name]
