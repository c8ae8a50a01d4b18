"""Packages that are called: `specxai.svd(...)` is `specxai.svd.svd(...)`.

A function and the package that defines it share one name, and importing the package would hide the function.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType


def make_callable(package: str, name: str) -> None:
    """Calling the imported `package` calls its function `name`, which is looked up then."""

    class CallablePackage(ModuleType):
        def __call__(self, *args, **kwargs):
            return getattr(self, name)(*args, **kwargs)

        # What inspect.signature and help() show.
        @property
        def __signature__(self) -> inspect.Signature:
            return inspect.signature(getattr(self, name))

    sys.modules[package].__class__ = CallablePackage
