"""The last results of a costly computation, for whoever asks for them again."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

__all__ = ["Kept"]

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """At most `most` values of at most `most_bytes` together; the one that was asked for longest ago goes first.

    Threads that ask for the same value at the same time get the one that the first of them makes, kept or not.
    A pickled or copied `Kept` is an empty one.

    >>> kept = Kept(2, 100)
    >>> [kept.get(key, lambda: key.upper(), size=lambda value: 10) for key in "aba"], len(kept)
    (['A', 'B', 'A'], 2)
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most, self.most_bytes = most, most_bytes
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._renew()

    def _renew(self) -> None:
        self._lock, self._making, self._process = threading.Lock(), {}, os.getpid()

    def get(self, key: Hashable, make: Callable[[], Value], size: Callable[[Value], int],
            serves: Callable[[Hashable, Value], bool] | None = None) -> Value:
        """The value kept under `key`, or else the last used that `serves(its key, it)`, or else what `make` returns.

        An error of `make` reaches the thread that ran it; others that waited for it try themselves.
        """
        if self._process != os.getpid():
            self._renew()  # after a fork: the threads that held the lock or were making something are not here
        serves = serves or (lambda other, value: other == key)
        while True:
            with self._lock:
                for other in [key, *reversed(self._values)]:
                    if other in self._values and serves(other, self._values[other][0]):
                        self._values.move_to_end(other)
                        return self._values[other][0]
                making = self._making.get(key)
                if making is None:
                    mine = self._making[key] = Future()
                    break
            wait([making])
            if making.exception() is None:
                return making.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._making[key]
            self._keep(key, value, size(value))
        mine.set_result(value)
        return value

    def _keep(self, key: Hashable, value: Value, size: int) -> None:
        if size > self.most_bytes:
            return
        self._values.pop(key, None)
        self._values[key] = value, size
        while len(self._values) > self.most or sum(size for _, size in self._values.values()) > self.most_bytes:
            self._values.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._values.clear()

    def __len__(self) -> int:
        return len(self._values)

    def __reduce__(self):
        return Kept, (self.most, self.most_bytes)
