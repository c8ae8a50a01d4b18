"""Values that leave torch for Python, which no ATen call tells."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Reads(TorchFunctionMode):
    """Tells `read` each tensor whose values are taken out."""

    _NAMES = frozenset({torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__, torch.Tensor.__dlpack__})

    def __init__(self, read: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._read = read

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self._NAMES:
            self._read(args[0])
        return func(*args, **(kwargs or {}))
