"""What each process of tests/core/test_parallel.py does: `several.py CASE RANK SIZE STORE`; prints what it found."""

from __future__ import annotations

import json
import os
import sys
import time

import torch
from torch import distributed as dist
from torch import nn

import specxai
from specxai.errors import ParallelError, StaleError
from specxai.operators import DenseOperator


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(216, 24), nn.ReLU(),
                         nn.Linear(24, 60)).to(dtype).eval()


def image(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def jacobian(seed: int = 0, dtype: torch.dtype = torch.float32):
    return specxai.linearize(net(seed, dtype), image(dtype)).jacobian


class Watched(DenseOperator):
    """Notes how many columns it is given, and may do something else instead."""

    def __init__(self, matrix: torch.Tensor, instead=None) -> None:
        super().__init__(matrix)
        self.given, self.instead = [], instead

    def _matmat(self, X):
        self.given.append(X.shape[1])
        if self.instead is not None and len(self.given) > 1:  # the first is the probe
            self.instead()
        return super()._matmat(X)

    def rough(self):
        return DenseOperator(2 * self.matrix)


class Wordy(DenseOperator):
    def _matmat(self, X):
        raise ValueError("λ" * 5000)


def products(rank: int, size: int) -> dict:
    found = {}
    for dtype in (torch.float32, torch.float64):
        J = jacobian(0, dtype)
        with specxai.parallel.columns(J, timeout=60) as wide:
            if wide is None:
                continue
            worst = 0.0
            for columns in (0, 1, 2, 3, 4, 7, 33):
                X, Y = torch.randn(J.shape[1], columns, dtype=dtype), torch.randn(J.shape[0], columns, dtype=dtype)
                for got, want in ((wide.matmat(X), J.matmat(X)), (wide.rmatmat(Y), J.rmatmat(Y)),
                                  (wide.T.matmat(Y), J.rmatmat(Y))):
                    assert got.shape == want.shape
                    worst = max(worst, float((got - want).norm() / want.norm().clamp_min(1e-30)))
            found[str(dtype)] = worst
            found["shapes"] = [list(wide.input_shape), list(wide.output_shape), wide.flops == J.flops]
    R = Watched(torch.arange(12.0).reshape(3, 4))
    with specxai.parallel.columns(R, timeout=60) as wide:
        if wide is not None:
            wide.matmat(torch.ones(4, 7)), wide.matmat(torch.ones(4, 1))
            found["twice"] = float(wide.rough().matmat(torch.ones(4, 5)).sum() / wide.matmat(torch.ones(4, 5)).sum())
    return {**found, "given": R.given[1:]}


def decompositions(rank: int, size: int) -> dict:
    J, found = jacobian(), {}
    with specxai.parallel.columns(J, timeout=60) as wide:
        if wide is not None:
            for method in ("exact", "krylov", "subspace"):
                ours, alone = (specxai.svd(R, rank=5, tol=1e-4, method=method) for R in (wide, J))
                found[method] = [float((ours.S - alone.S).abs().max() / alone.S[0]), ours.converged, ours.products,
                                 float(ours.residuals.max() / ours.S[0]), ours.settings.get("through_cut")]
    return found


def said_of(wide, error: type[Exception]) -> str:
    """What a decomposition fails with."""
    try:
        specxai.svd(wide, rank=1)
    except error as raised:
        return str(raised)
    return "nothing"



def failing(rank: int, size: int) -> dict:
    """Errors of a worker, of the leader, and a model that changes; the block goes on after each."""
    def instead():
        raise ValueError("no room\nfor so many columns")

    R = Watched(torch.ones(3, 4), instead if rank == 1 else None)
    found = {}
    with specxai.parallel.columns(R, timeout=60) as wide:
        if wide is not None:
            try:
                wide.matmat(torch.ones(4, 5))
            except ParallelError as error:
                found["matmat"] = str(error)
            found["rmatmat"] = float(wide.rmatmat(torch.ones(3, 5)).sum())
    try:
        with specxai.parallel.columns(Watched(torch.ones(3, 4)), timeout=60) as wide:
            if wide is not None:
                raise KeyError("the leader's own")
    except KeyError:
        found["own"] = True
    model = net()
    J = specxai.linearize(model, image()).jacobian
    with specxai.parallel.columns(J, timeout=60) as wide:
        found["left"] = wide is None
        if wide is not None:
            model[0].weight.data[0, 0, 0, 0] += 1
            found["stale"] = said_of(wide, StaleError)
    return found


def stale_elsewhere(rank: int, size: int) -> dict:
    model, found = net(), {}
    J = specxai.linearize(model, image()).jacobian
    J.ensure_current()
    check = type(J).ensure_current
    if rank == 1:
        type(J).ensure_current = lambda self: (model[0].weight.data[0, 0, 0, 0].add_(1), check(self))
    with specxai.parallel.columns(J, timeout=60) as wide:
        if wide is not None:
            found["stale"] = said_of(wide, ParallelError)
    return found


def another_model(rank: int, size: int) -> dict:
    found = {}
    wrong = {"seed": lambda: jacobian(seed=int(rank == size - 1)),
             "dtype": lambda: jacobian(dtype=torch.float64 if rank == size - 1 else torch.float32),
             "shape": lambda: DenseOperator(torch.ones(3, 4 + (rank == size - 1))),
             "no operator": lambda: torch.ones(3, 4) if rank == size - 1 else DenseOperator(torch.ones(3, 4)),
             "long": lambda: Wordy(torch.ones(3, 4)) if rank == size - 1 else DenseOperator(torch.ones(3, 4)),
             "not finite": lambda: DenseOperator(torch.ones(3, 4) / (0 if rank == size - 1 else 1))}
    for name, operator in wrong.items():
        try:
            with specxai.parallel.columns(operator(), timeout=60):
                found[name] = "accepted"
        except ParallelError as error:
            found[name] = str(error)
    return found


def dies(rank: int, size: int) -> dict:
    R = Watched(torch.ones(3, 4), (lambda: os._exit(7)) if rank == 1 else None)
    return _lost(R)


def hangs(rank: int, size: int) -> dict:
    R = Watched(torch.ones(3, 4), (lambda: time.sleep(8)) if rank == 1 else None)
    return _lost(R, timeout=2)


def _lost(R, timeout: float = 60) -> dict:
    found, start = {}, time.monotonic()
    try:
        with specxai.parallel.columns(R, timeout=timeout) as wide:
            if wide is not None:
                for key in ("first", "second"):
                    try:
                        wide.matmat(torch.ones(4, 6))
                    except ParallelError as error:
                        found[key] = str(error)
    except ParallelError as error:
        found["served"] = str(error)
    return {**found, "seconds": time.monotonic() - start}


def leader_dies(rank: int, size: int) -> dict:
    found = {}
    try:
        with specxai.parallel.columns(Watched(torch.ones(3, 4)), timeout=60) as wide:
            if wide is not None:
                os._exit(7)
    except ParallelError as error:
        found["served"] = str(error)
    return found


if __name__ == "__main__":
    case, rank, size, store = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=size)
    print(json.dumps(globals()[case](rank, size)), flush=True)
    os._exit(0)  # without waiting for who was lost
