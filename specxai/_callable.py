"""Packages that are called: `specxai.svd(...)` is `specxai.svd.svd(...)`.

A function and the package that defines it share one name, and importing the package would hide the function.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType


def make_callable(package: str, function: Callable) -> None:
    """Calling the imported `package` calls `function`."""

    class CallablePackage(ModuleType):
        def __call__(self, *args, **kwargs):
            return function(*args, **kwargs)

        # What inspect.signature and help() show.
        @property
        def __signature__(self) -> inspect.Signature:
            return inspect.signature(function)

    sys.modules[package].__class__ = CallablePackage
