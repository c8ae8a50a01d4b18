"""Backends run the linear nodes of one input on blocks of probes.  Each says why it can or cannot.

`reference` sends blocks through whole values.  `native`, `torch` and `cuda` are engines, which run plans over live
units.  `NAMES` holds all four, and `PLAN_FROM` is the number of columns from which "auto" makes a plan.
"""

from __future__ import annotations

# No `import torch` here: the engine of that name is a module of this package.
from specxai.backends.engine import Backend, Engine, Executable, Products
from specxai.backends.registry import NAMES, PLAN_FROM, choose, describe, make

__all__ = ["NAMES", "PLAN_FROM", "Backend", "Engine", "Executable", "Products", "choose", "describe", "make"]
