"""The paper's own systems as experiments, each a module with `run(study)`: they stand on the library's public API.

>>> from pathlib import Path
>>> from specxai.experiments import Study, load
>>> load("squares").run(Study(Path("out/squares"), "squares", quick=True))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from types import ModuleType

from specxai.experiments.progress import Progress
from specxai.experiments.study import Study, require

__all__ = ["EXPERIMENTS", "Progress", "Study", "load", "require"]

# Name -> module, imported when asked for.  Each has SUMMARY, a line; run(study); and where it takes or needs any,
# OPTIONS, the flags of `specxai reproduce` that it reads, and REQUIRES, optional packages that it imports.
EXPERIMENTS: dict[str, str] = {
    "imagenet": "specxai.experiments.imagenet",
    "cars": "specxai.experiments.cars",
    "turbines": "specxai.experiments.turbines",
    "squares": "specxai.experiments.squares",
    "compare": "specxai.experiments.compare",
    "shapes": "specxai.experiments.shapes",
}


def load(name: str) -> ModuleType:
    """The module of an experiment.  Raises ValueError for a name that there is not."""
    if name not in EXPERIMENTS:
        raise ValueError(f"no experiment is named {name!r}; there are {', '.join(EXPERIMENTS)}")
    return importlib.import_module(EXPERIMENTS[name])
