"""What makes the host wait for a device, counted on tensors of any."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Calls whose result the host waits for: a number, a size that depends on numbers, LAPACK's own checks.
WAITING = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2",
           "unique_consecutive", "repeat_interleave", "_linalg_svd", "_linalg_eigh", "linalg_svd", "linalg_eigh",
           "allclose", "_linalg_check_errors", "linalg_lstsq")


class Waits(TorchDispatchMode):
    """The calls within that wait for a device, by name; copies from one device to another too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        result = function(*args, **(kwargs or {}))
        moves = name in ("_to_copy", "copy_") and _device(args[-1 if name == "copy_" else 0]) != _device(result)
        if name in WAITING or masks or moves:
            self.found.append(name)
        return result


def _device(value) -> torch.device:
    return value.device if isinstance(value, torch.Tensor) else torch.device("cpu")
