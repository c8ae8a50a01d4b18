"""Imports torchvision and timm beside a torch whose build carries no torchvision operators.

torchvision's wheel registers shape functions for compiled operators (`nms`, `roi_align`, …) that a CPU-only
torch does not have, and its import fails on the first of them.  None is used by an image classifier, so
declaring their names is enough for every model definition to run.
"""

from __future__ import annotations

import importlib
from types import ModuleType

# The compiled operators named in torchvision's `_meta_registrations.py`.
_OPERATORS = (
    "nms", "qnms", "roi_align", "qroi_align", "ps_roi_align", "roi_pool", "ps_roi_pool",
    "_roi_align_backward", "_ps_roi_align_backward", "_roi_pool_backward", "_ps_roi_pool_backward",
)
_library = None


def import_vision(name: str) -> ModuleType:
    """Import module `name` ("torchvision.models", "timm"), declaring torchvision's operators if need be.

    Raises ImportError naming the extra to install when the package is missing.
    """
    global _library
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    except ImportError as error:
        package = name.split(".")[0]
        raise ImportError(f"{package} is not installed: pip install 'specxai[models]'") from error
    import sys

    import torch

    if _library is None:
        _library = torch.library.Library("torchvision", "DEF")
        for operator in _OPERATORS:
            _library.define(f"{operator}(Tensor x) -> Tensor")
    for loaded in [m for m in sys.modules if m.split(".")[0] in ("torchvision", "timm")]:
        del sys.modules[loaded]  # half-imported by the failed attempt
    return importlib.import_module(name)
