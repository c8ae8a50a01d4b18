"""Full float32 products while a solver runs.

TF32 and bfloat16 products, which PyTorch may use for float32 matrices and does use for float32 convolutions on CUDA,
fall far below the rounding floor that every certificate assumes.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

__all__ = ["full_precision", "has_bfloat16"]

FULL = ("none", "ieee")  # nothing was asked for, which is full precision; or it was asked for
_LIBRARIES = {"cpu": ("mkldnn",), "cuda": ("cuda", "cudnn")}


@cache
def has_bfloat16(device: torch.device | str) -> bool:
    """Does the device multiply bfloat16 numbers, so that they are not widened first?"""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    tests = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return device.type == "cpu" and any(test is not None and test() for test in tests)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No TF32, no bfloat16, no autocast, no inference mode and no autograd inside.

    All but the first two are the thread's own.  Those are PyTorch's settings for the whole process, one per library and
    kind of operator (the older `torch.get_float32_matmul_precision` raises where a user has set them).  Where they are
    full already, as on a CPU by default, nothing is touched; else the first thread to enter changes them and the last
    to leave puts back what it found.
    """
    lowered = _switches(device.type)
    held = lowered.enter()
    try:
        # Leaving inference mode turns autograd on.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if held:
            lowered.leave()


class _Switches:
    """The precision settings of the libraries that run one kind of device, and the threads that need them full."""

    def __init__(self, device: str) -> None:
        modules = [getattr(torch.backends, name) for name in _LIBRARIES.get(device, ())]
        settings = [getattr(module, part, None) for module in modules for part in ("matmul", "conv", "rnn")]
        self._settings = [setting for setting in settings if hasattr(setting, "fp32_precision")]
        self._lock = threading.Lock()
        self._holders: Counter[int] = Counter()  # by thread
        self._found: list[str] = []

    def enter(self) -> bool:
        """Make the settings full where they are not; must the caller `leave` again?"""
        with self._lock:
            if not self._holders:
                now = [setting.fp32_precision for setting in self._settings]
                if all(precision in FULL for precision in now):
                    return False
                self._found = [self._changed(*pair) for pair in zip(self._settings, now, strict=True)]
            self._holders[threading.get_ident()] += 1
            return True

    def leave(self) -> None:
        with self._lock:
            thread = threading.get_ident()
            self._holders[thread] -= 1
            if not self._holders[thread]:
                del self._holders[thread]
            if not self._holders:
                self._put_back()

    @staticmethod
    def _changed(setting, now: str) -> str:
        """Make a setting full; what it held itself, "none" where it follows a setting above it."""
        if now in FULL:
            return ""
        setting.fp32_precision = "none"
        follows = setting.fp32_precision == now
        setting.fp32_precision = "ieee"
        return "none" if follows else now

    def _put_back(self) -> None:
        for setting, found in zip(self._settings, self._found, strict=True):
            if found and setting.fp32_precision == "ieee":  # else someone has set it since
                setting.fp32_precision = found

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self, child: bool) -> None:
        if child:  # where no other thread lives on to leave
            mine = threading.get_ident()
            others = [thread for thread in self._holders if thread != mine]
            for thread in others:
                del self._holders[thread]
            if others and not self._holders:
                self._put_back()
        self._lock.release()


_ALL = {device: _Switches(device) for device in (*_LIBRARIES, "other")}


def _switches(device: str) -> _Switches:
    return _ALL.get(device, _ALL["other"])


def _each(call) -> None:
    for switches in _ALL.values():
        call(switches)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lambda: _each(_Switches.before_fork),
                        after_in_parent=lambda: _each(lambda s: s.after_fork(child=False)),
                        after_in_child=lambda: _each(lambda s: s.after_fork(child=True)))
