"""Going on in the child of a fork."""

from __future__ import annotations

import os
from functools import cache

import torch

__all__ = ["survive_fork"]


@cache
def survive_fork() -> None:
    """From now on, a process that is forked from this one computes on one thread, as PyTorch's own workers do.

    OpenMP's threads are not forked, and the child's first parallel loop, PyTorch's or ours, would wait for them for
    ever.  Called where work begins: a process that never computed forks as it would without this library.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
