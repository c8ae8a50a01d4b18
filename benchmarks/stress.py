"""Threads that capture, multiply, solve and explain at once: right values, and settings that stay as they were.

Examples:
    python benchmarks/stress.py --seconds 60                    # eight threads
    python benchmarks/stress.py --explains 2000 --seconds 0     # memory over many explanations
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import sys
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import nn

import specxai

KINDS = ("product", "adjoint", "wide", "linearize", "exact", "krylov", "explain", "capture")


def net(seed: int = 0) -> nn.Sequential:
    """Convolutions, norm, pooling and two layers without a rule's fast path, with weights of a seed."""
    generator = torch.Generator().manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(8, 12, 3), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 24), nn.ReLU(),
                         nn.Linear(24, 6)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    return made


def image(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def settings() -> dict:
    """What is global in a process and none of a library's business."""
    backends = torch.backends
    precision = [switch.fp32_precision for switch in (
        backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)]
    cuda = backends.cuda
    attention = [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()]
    return {"precision": precision, "attention": attention, "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "dtype": torch.get_default_dtype(), "device": torch.get_default_device(), "gc": gc.isenabled(),
            "threads": torch.get_num_threads(), "stdout": sys.stdout, "stderr": sys.stderr,
            "filters": list(warnings.filters), "seed": torch.initial_seed(),
            "levels": {name: logging.getLogger(name).level for name in ("", "torch", "torch.export", "torch._dynamo")}}


class Work:
    """One model, one Local and one operator, which all threads share, and what each kind of work must give."""

    def __init__(self) -> None:
        self.model, self.x = net(), image()
        self.captured = specxai.capture(self.model, self.x)
        self.local = self.captured.linearize(self.x)
        point = self.x.clone().requires_grad_()
        self.dense = torch.autograd.functional.jacobian(self.model, point).reshape(6, -1)
        self.values = torch.linalg.svdvals(self.dense)

    def do(self, kind: str, seed: int) -> None:
        """Raise AssertionError where the result is wrong."""
        generator = torch.Generator().manual_seed(seed)
        J = self.local.jacobian if seed % 2 else self.captured.linearize(self.x).jacobian
        if kind in ("product", "wide"):
            X = torch.randn(J.shape[1], 40 if kind == "wide" else 1 + seed % 5, generator=generator, dtype=J.dtype)
            close(J @ X, self.dense @ X)
        elif kind == "adjoint":
            Y = torch.randn(J.shape[0], 1 + seed % 33, generator=generator, dtype=J.dtype)
            close(J.T @ Y, self.dense.T @ Y)
        elif kind == "linearize":
            x = image(seed)
            local = self.captured.linearize(x)
            with torch.no_grad():
                close(local.output, self.model(x))
            assert local.exactness < 1e-10
        elif kind in ("exact", "krylov"):
            close(specxai.svd(J, rank=3, tol=1e-10, method=kind, progress=False).S, self.values[:3])
        elif kind == "explain":
            e = specxai.explain(self.local, layer="7", rank=None, progress=False)
            assert e.completeness < 1e-9, e.completeness
        elif kind == "capture":
            model = net(seed)
            local = specxai.linearize(model, self.x)
            with torch.no_grad():
                close(local.output, model(self.x))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    error = float((ours - theirs).norm() / theirs.norm())
    assert error < 1e-9, f"wrong by {error:.1e}"


def run(seconds: float, threads: int = 8, kinds: tuple[str, ...] = KINDS) -> Counter[str]:
    """How often each kind of work was done; raises the first error of any thread, or where a setting changed."""
    work = Work()
    for turn, kind in enumerate(kinds):  # what is imported at its first use may have settings of its own
        work.do(kind, turn)
    before = settings()
    done: Counter[str] = Counter()
    errors: list[BaseException] = []
    end = time.monotonic() + seconds

    def go(number: int) -> None:
        turn = number
        while not errors and time.monotonic() < end:
            kind = kinds[turn % len(kinds)]
            try:
                work.do(kind, turn)
            except BaseException as error:  # whatever it is, the main thread raises it
                error.add_note(f"while doing {kind} in thread {number}, turn {turn}")
                errors.append(error)
            done[kind] += 1
            turn += 1

    started = [threading.Thread(target=go, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]
    after = settings()
    changed = {name: (value, after[name]) for name, value in before.items() if after[name] != value}
    assert not changed, f"changed: {changed}"
    return done


def resident() -> float:
    """MiB of this process in memory."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def explain_often(count: int) -> list[float]:
    """MiB after each tenth of so many explanations, each of an input of its own."""
    model, sizes = net(), []
    for i in range(count):
        specxai.explain(model, image(i), layer="7", rank=2, progress=False)
        if (i + 1) % max(1, count // 10) == 0:
            sizes.append(resident())
            print(f"{i + 1:6d} explanations, {sizes[-1]:8.1f} MiB", flush=True)
    return sizes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--explains", type=int, default=0)
    given = parser.parse_args()
    # More OpenMP threads than processors wait for each other by spinning.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // given.threads))
    if given.seconds:
        for name, times in sorted(run(given.seconds, given.threads, tuple(given.kinds)).items()):
            print(f"{name:12s} {times:7d}")
        print(f"right, and nothing global changed; {resident():.1f} MiB")
    if given.explains:
        explain_often(given.explains)
