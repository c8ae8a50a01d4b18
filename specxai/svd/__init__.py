"""Certified SVD of a linear operator; `specxai.svd(operator, ...)` is `specxai.svd.svd(operator, ...)`.

`METHODS` holds the names that `method=` takes.
"""

from __future__ import annotations

from specxai._callable import make_callable
from specxai.svd.result import SVDResult
from specxai.svd.solve import METHODS, svd

__all__ = ["METHODS", "SVDResult", "svd"]

make_callable(__name__, "svd")
