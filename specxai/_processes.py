"""Work spread over devices, one process a device, with results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from specxai.errors import SpecXAIError

AHEAD = 2  # tasks that each process may be ahead of what has been read

_shared: Any = None  # of a worker: what its tasks share, and its device; an error where they could not be read


def spread(function: Callable[[Any, torch.device, Any], Any], shared: Any, devices: list[torch.device],
           tasks: Iterable[Any]) -> Iterator[Any]:
    """function(shared, device, task) of each task, each in the process of the next device that is free.

    The processes begin by importing the main module again: a script needs `if __name__ == "__main__":`.  Raises
    TypeError where `shared` cannot be pickled, SpecXAIError where a process ends, and what the function raises.
    """
    payload = _pickled((function, shared))
    context = multiprocessing.get_context("spawn")  # a fork has no CUDA, and no threads of its own
    threads = max(1, torch.get_num_threads() // len(devices))
    pools = [ProcessPoolExecutor(1, context, _begin, (payload, str(device), threads)) for device in devices]
    waiting: deque[Future] = deque()
    given: list[list[Future]] = [[] for _ in pools]
    try:
        for task in tasks:
            given = [[future for future in mine if not future.done()] for mine in given]
            at = min(range(len(pools)), key=lambda i: len(given[i]))
            waiting.append(pools[at].submit(_work, _pickled(task)))
            given[at].append(waiting[-1])
            while len(waiting) >= AHEAD * len(pools):
                yield pickle.loads(waiting.popleft().result())
        while waiting:
            yield pickle.loads(waiting.popleft().result())
    except BrokenProcessPool as error:
        raise SpecXAIError("a process of devices= ended before its work was done: out of memory, or a script without "
                           "if __name__ == '__main__': around what it runs") from error
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)


def _pickled(what: Any) -> bytes:
    """As bytes: tensors would each take a file handle of shared memory."""
    try:
        return pickle.dumps(what)
    except Exception as error:
        raise TypeError(f"devices= needs a model and options that can be pickled, to reach other processes ({error}); "
                        "what is defined at the top of a module can, a lambda cannot") from error


def _begin(payload: bytes, device: str, threads: int) -> None:
    global _shared
    torch.set_num_threads(threads)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    try:
        function, shared = pickle.loads(payload)
    except Exception as error:  # raised here it would be nobody's
        _shared = SpecXAIError(f"a process of devices= cannot take on the work: {type(error).__name__}: {error}. What "
                               "the model is made of must be importable there, from modules and not from a script")
        return
    _shared = function, shared, torch.device(device)


def _work(task: bytes) -> bytes:
    if isinstance(_shared, SpecXAIError):
        raise _shared
    function, shared, device = _shared
    return pickle.dumps(function(shared, device, pickle.loads(task)))
