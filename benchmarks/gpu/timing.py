"""Seconds of work on the card, or on the CPU in a rehearsal; and the precision of torch's own products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median, quantiles

import torch


class Clock:
    """Times work on one device, until a deadline that no new measurement may start behind."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self._end = device, time.monotonic() + seconds
        # Larger than any second-level cache, to be written between two runs.
        self._flush = torch.empty((256 << 20) if device.type == "cuda" else 1, dtype=torch.uint8, device=device)

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def of(self, work: Callable[[], object], seconds: float = 1.0, most: int = 30, warm: bool = True) -> dict:
        """{"seconds", "iqr", "runs"}: the median of as many cold runs as fit, one at least, after one to warm up."""
        if warm:
            work()
        times: list[float] = []
        stop = time.monotonic() + seconds
        while not times or (len(times) < most and time.monotonic() < stop):
            self._flush.zero_()
            times.append(self._once(work))
        quarters = quantiles(times, n=4) if len(times) > 1 else (0.0, 0.0, 0.0)
        return {"seconds": median(times), "iqr": quarters[2] - quarters[0], "runs": len(times)}

    def _once(self, work: Callable[[], object]) -> float:
        self.wait()
        if self.device.type != "cuda":
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """torch's float32 products in TF32, or not: cuDNN's are by default."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = allowed
    try:
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value
