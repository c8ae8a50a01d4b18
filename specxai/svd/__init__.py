"""Certified SVD of a linear operator; `specxai.svd(operator, ...)` is `specxai.svd.svd(operator, ...)`.

The package is callable, so that the function carries the package's name and neither hides the other.
"""

from __future__ import annotations

import sys
from types import ModuleType

from specxai.svd.result import SVDResult
from specxai.svd.solve import METHODS, svd

__all__ = ["METHODS", "SVDResult", "svd"]


class _CallableModule(ModuleType):
    def __call__(self, *args, **kwargs) -> SVDResult:
        return svd(*args, **kwargs)

    # What inspect.signature and help() show.
    @property
    def __signature__(self):
        import inspect

        return inspect.signature(svd)


sys.modules[__name__].__class__ = _CallableModule
