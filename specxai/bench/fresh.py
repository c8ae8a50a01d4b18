"""Seconds and peak memory of one piece of work in a fresh process.

The peak is the kernel's high-water mark of resident memory, VmHWM of /proc/self/status, reset just before the work,
minus the resident memory at that moment, when the model is built, captured and has been run once.  getrusage's
ru_maxrss is the same mark, but a child inherits it from the process that started it, and it cannot be reset; this
file falls back to it where there is no /proc, minus the resident memory before, which then bounds the truth from above.
Blocks above 128 KiB are mapped one by one (MALLOC_MMAP_THRESHOLD_), so that what was freed before the work is returned
to the system and cannot be used again unseen.

    python -m specxai.bench.fresh svd vgg11_bn equal "specxai reference" 2 8
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path


def measure(*arguments: object, timeout: float = 1800) -> dict:
    """Run this module with `arguments` in a process of its own; {"seconds", "peak_mb"}."""
    run = subprocess.run(
        [sys.executable, "-m", "specxai.bench.fresh", *map(str, arguments)], capture_output=True, text=True,
        timeout=timeout, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 << 10)},
    )  # fmt: skip
    if run.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))} failed in a fresh process:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def measured(work) -> dict:
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):  # not Linux, or not glibc: the fallback above
        pass
    before = _resident()
    start = time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - start
    peak = _status("VmHWM") or _maximum()
    del kept
    return {"seconds": seconds, "peak_mb": round((peak - before) / 1e6, 1)}


def _resident() -> int:
    return _status("VmRSS") or _maximum()


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def _maximum() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _svd(case: str, question: str, peer: str, threads: str, chunk: str) -> dict:
    import torch

    from specxai.bench.cases import QUESTIONS
    from specxai.bench.operators import TorchFunc
    from specxai.bench.peers import find

    torch.set_num_threads(int(threads))
    subject = find(case, int(chunk))
    # Loads and warms up what the work needs: libraries, threads, the tracing of torch.func.linearize.
    subject.check(peer)
    TorchFunc(torch.nn.Linear(2, 2), torch.ones(1, 2), 1)
    subject.__dict__.pop("reference", None)  # its masks are part of what is measured
    return measured(lambda: subject.solver(peer, QUESTIONS[question])())  # with the fixing of the gates


def _capture(case: str, who: str, threads: str) -> dict:
    import torch

    from specxai.bench.peers import capture, export, find

    torch.set_num_threads(int(threads))
    subject = find(case)
    with torch.no_grad():
        subject.model(subject.x)
    return measured(lambda: {"specxai": capture, "export": export}[who](subject))


if __name__ == "__main__":
    print(json.dumps({"svd": _svd, "capture": _capture}[sys.argv[1]](*sys.argv[2:])))
