"""What a Local was made from: the tensors of the model that its graph reads, and whether they still hold the same.

A graph's nodes read the model's own weights when a product runs, and hold gates, offsets and packed weights that come
from them.  So a product after an update would mix two models.  Three things tell of one, from the cheapest on: which
tensor the model has under a name, the tensor's version and address, and its contents, since writing to `.data` or
through NumPy changes neither of the others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from specxai.capture.program import Program, references
from specxai.errors import StaleError

__all__ = ["Snapshot"]

WORDS = 1 << 15  # words of eight bytes that one number stands for
WHOLE = 1 << 22  # bytes; the smallest tensors, up to so much together, are read whole before every product
SAMPLES = 256  # words of the others that are read before every product
SHARE = 0.02  # of a product's time, for reading the others in turn
RATE = 4e9  # bytes a second that one thread reads at
SHARED_FROM = 1 << 25  # bytes that are worth more than one thread
# Odd, so that a change of a single word always shows; different, so that an exchange does.
_FACTORS = np.random.default_rng(16).integers(0, 2**63, WORDS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class Snapshot:
    """The constants that the active steps of a program read, as they were when this was made.

    program   whose constants are watched
    model     which gives them their names; None where the program came without one
    """

    def __init__(self, program: Program, model: nn.Module | None = None) -> None:
        names = _Names(model)
        self._watched = [_Watched(*names.of(part, program.steps[index].name)) for index in sorted(_read(program))
                         for part in _parts(program.constants[index])]
        _sums(self._watched, [watched.record() for watched in self._watched])
        room = WHOLE
        for watched in sorted(self._watched, key=lambda watched: watched.memory.size):
            room -= watched.memory.size
            watched.whole = room >= 0
        self._turns = [(watched, block) for watched in self._watched if not watched.whole
                       for block in range(watched.memory.blocks)]
        self._turn = 0
        self._inside = threading.local()

    def check(self, full: bool = False, seconds: float = 0.0, waits: bool = True) -> None:
        """Raise StaleError, which names the tensor, where one has changed.

        full      everything is read; else small tensors whole, samples of the others, and parts of those in turn
        seconds   that the work before which this is asked takes: the parts are read in a fiftieth of it
        waits     False where whoever asks looks at everything later: contents are not read, which waits for a device
        """
        if getattr(self._inside, "depth", 0):
            return  # everything is read at the end
        if full:
            for watched in self._watched:
                watched.check_place()
            found = [np.empty_like(watched.sums) for watched in self._watched]
            _sums(self._watched, found)
            for watched, sums in zip(self._watched, found, strict=True):
                watched.compare(0, sums)
            return
        if not waits:
            for watched in self._watched:
                watched.check_place()
            return
        for watched in self._watched:
            watched.check()
        if self._turns:
            blocks = min(len(self._turns), int(seconds * SHARE * RATE / (8 * WORDS)))
            start, self._turn = self._turn, (self._turn + blocks) % len(self._turns)
            for turn in range(start, start + blocks):
                watched, block = self._turns[turn % len(self._turns)]
                watched.compare(block, watched.memory.sums(block, 1))

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Everything is read before and after, and nothing by what runs inside in this thread; a change raises then.

        A solver makes hundreds of products of a millisecond, of which looking at every weight would be a large part.
        """
        self.check(full=True)
        self._inside.depth = getattr(self._inside, "depth", 0) + 1
        try:
            yield
        finally:
            self._inside.depth -= 1
        self.check(full=True)


class _Watched:
    """One tensor: where it is, what it holds, and the name and place by which the model has it."""

    def __init__(self, tensor: Tensor, name: str, owner: tuple[dict, str] | None) -> None:
        self.tensor, self.name, self._owner = tensor, name, owner
        self.whole = False

    def record(self) -> np.ndarray:
        """Take note of where the tensor is; the array for its sums, which the caller fills."""
        self._place, self.memory = _place(self.tensor), _memory(self.tensor)
        self._storage = self.tensor.untyped_storage()  # so that its memory cannot go while it is read
        self._sample = self.memory.sample()
        self.sums = np.zeros(self.memory.blocks, dtype=np.uint64)
        return self.sums

    def check(self) -> None:
        """What stands before every product."""
        self.check_place()
        if self.whole:
            self.compare(0, self.memory.sums(0, self.memory.blocks))
        elif self.memory.sample() != self._sample:
            raise self._stale("has changed")

    def check_place(self) -> None:
        """Is the tensor what the model has under its name, where it was, without an update?"""
        if self._owner is not None:
            container, key = self._owner
            now = container.get(key)
            if now is not self.tensor and not (isinstance(now, Tensor) and self._equals(now)):
                raise self._stale("has been replaced")
        place = _place(self.tensor)
        if place != self._place:
            # An update may have left, or restored, what was there: that is no change.
            if not self._equals(self.tensor):
                raise self._stale("has changed")
            self._place, self.memory, self._storage = place, _memory(self.tensor), self.tensor.untyped_storage()

    def compare(self, first: int, sums: np.ndarray) -> None:
        if not np.array_equal(self.sums[first:first + len(sums)], sums):
            raise self._stale("has changed")

    def _equals(self, tensor: Tensor) -> bool:
        """Does a tensor hold what this one held?"""
        if _form(tensor) != _form_of(self._place):
            return False
        memory = _memory(tensor)
        return np.array_equal(memory.sums(0, memory.blocks), self.sums)

    def _stale(self, what: str) -> StaleError:
        return StaleError(f"{self.name} {what} since specxai.linearize was called, and its affine map belongs to the "
                          "weights of then; call specxai.linearize(model, x) again")


def _form(tensor: Tensor) -> tuple:
    return (tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.is_neg())


def _place(tensor: Tensor) -> tuple:
    """What an update of the tensor, other than to the memory behind it, changes."""
    version = -1 if tensor.is_inference() else tensor._version  # inference tensors count none
    return (version, tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.is_neg())


def _form_of(place: tuple) -> tuple:
    return place[2:]


class _Memory:
    """The bytes of a tensor on the CPU as words of eight, WORDS of them in a block; sums are modulo 2^64, so exact.

    They are read where they are, with no NumPy array kept by torch, which would forbid it to resize the tensor.
    """

    def __init__(self, tensor: Tensor) -> None:
        gapless = _gapless(tensor)
        self._kept = gapless  # a copy, where the tensor has gaps, must outlive this
        self.size = size = gapless.numel() * gapless.itemsize
        whole = size // 8 * 8
        self._words = _array(gapless.data_ptr(), whole // 8, "<u8")
        self._rest = _array(gapless.data_ptr() + whole, size - whole, "|u1")
        self.blocks = -(-size // (8 * WORDS))
        step = max(1, len(self._words) // SAMPLES) | 1
        self._some = self._words[::step][:SAMPLES]
        self._factors = _FACTORS[:len(self._some)]

    def sample(self) -> int:
        return int(np.dot(self._some, self._factors))

    def sums(self, first: int, count: int) -> np.ndarray:
        words = self._words[first * WORDS:(first + count) * WORDS]
        full = len(words) // WORDS
        found = np.zeros(count, dtype=np.uint64)
        np.dot(words[:full * WORDS].reshape(full, WORDS), _FACTORS, out=found[:full])
        if full < count:  # the last block, with the bytes that fill no word
            last = words[full * WORDS:]
            tail = int.from_bytes(self._rest.tobytes(), "little") * int(_FACTORS[-1])
            found[full] = (int(np.dot(last, _FACTORS[:len(last)])) + tail) % 2**64
        return found


class _DeviceMemory:
    """The same of a tensor on another device, element by element: WORDS elements in a block."""

    def __init__(self, tensor: Tensor) -> None:
        gapless = _gapless(tensor)
        if gapless.is_complex():
            gapless = torch.view_as_real(gapless).flatten()
        self._elements = gapless.view(_INTEGERS[gapless.itemsize])
        self.blocks = -(-len(self._elements) // WORDS)
        self.size = WHOLE + 1  # never whole: each sum is a wait for the device
        # Neighbours, which one copy fetches.
        size = min(len(self._elements), SAMPLES)
        start = (len(self._elements) - size) // 2
        self._some = self._elements[start:start + size]

    def sample(self) -> int:
        return hash(self._some.cpu().numpy().tobytes())

    def sums(self, first: int, count: int) -> np.ndarray:
        factors = torch.from_numpy(_FACTORS.view(np.int64)).to(self._elements.device)
        found = np.zeros(count, dtype=np.uint64)
        for start in range(0, count, 64):  # 64 blocks of eight-byte numbers at once
            stop = min(count, start + 64)
            part = self._elements[(first + start) * WORDS:(first + stop) * WORDS].long()
            padded = part.new_zeros(stop - start, WORDS)
            padded.view(-1)[:len(part)] = part
            found[start:stop] = (padded * factors).sum(1).cpu().numpy().view(np.uint64)
        return found


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _memory(tensor: Tensor) -> _Memory | _DeviceMemory:
    return _Memory(tensor) if tensor.device.type == "cpu" else _DeviceMemory(tensor)


def _gapless(tensor: Tensor) -> Tensor:
    """The tensor's numbers as one line: its own memory where that has no gaps, else a copy."""
    with torch.inference_mode(False), torch.no_grad():
        tensor = tensor.detach()
        if tensor.numel() == 0:
            return tensor.reshape(-1)
        # An axis that repeats holds its numbers once; the rest lies without gaps where the strides are those of sizes.
        axes = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
                      if size > 1 and stride)
        room = 1
        for stride, size in axes:
            if stride != room:
                return tensor.contiguous().reshape(-1).clone()
            room *= size
        return torch.as_strided(tensor, (room,), (1,))


def _array(address: int, length: int, kind: str) -> np.ndarray:
    """The memory at an address, to be read alone."""
    if not length:
        return np.zeros(0, dtype=kind)

    return np.asarray(_Interface({"data": (address, True), "shape": (length,), "typestr": kind, "version": 3}))


class _Interface:
    """NumPy's protocol for memory that is someone else's."""

    def __init__(self, interface: dict) -> None:
        self.__array_interface__ = interface


def _sums(watched: Sequence[_Watched], found: Sequence[np.ndarray]) -> None:
    """Read everything into `found`, on several threads where it is much."""
    step = max(1, SHARED_FROM // (8 * WORDS))
    tasks = [(one, into, start, min(step, one.memory.blocks - start)) for one, into in zip(watched, found, strict=True)
             for start in range(0, one.memory.blocks, step)]

    def read(task: tuple[_Watched, np.ndarray, int, int]) -> None:
        one, into, start, count = task
        into[start:start + count] = one.memory.sums(start, count)

    threads = min(torch.get_num_threads(), 4, len(tasks))
    if threads < 2 or sum(count for *_, count in tasks) < step:
        for task in tasks:
            read(task)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, tasks))


def _read(program: Program) -> set[int]:
    """Constants that an active step depends on."""
    if "read" not in program.found:
        needed: set[int] = set()
        for step in reversed(program.steps):
            if step.index in program.active or step.index in needed:
                needed.update(references((step.args, dict(step.kwargs))))
        program.found["read"] = needed & set(program.constants)
    return program.found["read"]


def _parts(value: object) -> list[Tensor]:
    """The plain tensors that a constant consists of; none where torch gives no access to its memory."""
    if not isinstance(value, Tensor):
        return []
    if is_traceable_wrapper_subclass(value):
        return [part for name in value.__tensor_flatten__()[0] for part in _parts(getattr(value, name))]
    if value.layout is torch.strided:
        return [value]
    if value.layout is torch.sparse_coo:
        return [value._indices(), value._values()]
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [value.crow_indices(), value.col_indices(), value.values()]
    if value.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [value.ccol_indices(), value.row_indices(), value.values()]
    return []


class _Names:
    """What a model calls its tensors, and where it has them."""

    def __init__(self, model: nn.Module | None) -> None:
        self._known: dict[int, tuple[str, dict, str]] = {}
        for path, module in model.named_modules() if model is not None else ():
            for container in (module._parameters, module._buffers, vars(module)):
                for key, value in container.items():
                    if isinstance(value, Tensor):
                        name = f"{path}.{key}" if path else key
                        self._known.setdefault(id(value), (name, container, key))

    def of(self, tensor: Tensor, otherwise: str) -> tuple[Tensor, str, tuple[dict, str] | None]:
        """(the tensor, its name, (container, key))."""
        if id(tensor) not in self._known:
            return tensor, otherwise, None
        name, container, key = self._known[id(tensor)]
        return tensor, name, (container, key)
