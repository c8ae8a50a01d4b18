"""Which way of running a stage is fastest, measured on the card and remembered.

The kernels count what each way takes (`specxai.kernels.split.counted_cost`), and without a measurement the counted
choice runs.  On a CUDA device the first pass of a stage, which is not captured, tries the ways that the counts put
within twice the best: each once to compile it, then the median of three runs between two events.  The winner is kept
for the process, and in a file of the user's cache for the next one: `specxai/tuned/CARD-CAPABILITY-KERNELS.json`.

Choices change the order of sums, so rounding and nothing else.  Bits may differ between a machine that has measured and
one that has not, and between the processes of `specxai.parallel`, each of which makes its columns alone and agrees with
no other on anything but their values.  SPECXAI_TUNE=0 turns it off: the counted choices run, with the same bits on
every card of a kind.  SPECXAI_TUNE=again measures anew and replaces what the file has.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from itertools import chain
from pathlib import Path
from statistics import median
from threading import RLock
from typing import Protocol, TypeVar

import torch

from specxai._files import replacing

__all__ = ["Choices", "Events", "choices", "using"]

BEYOND = 2.0  # times the least counted cost from which on a way is not tried
MOST = 6  # ways that are tried, the counted choice included
LEAST = 1e6  # of a counted cost, 3 µs on an H100: what takes less is not worth the kernels that trials compile
GAIN = 0.97  # of the counted choice's time that another may take at most: less is within the noise
RUNS = 3
FORMAT, KEPT, MOST_BYTES = 1, 4096, 1 << 24  # of a file: its format, stages that it keeps, and what is read
WAIT = 2_000_000  # cycles, a millisecond: what the host may take for the launches of one run
_FIELDS = {"chosen": str, "counted": str, "seconds": dict, "failed": dict}  # of a record

Clock = Callable[[Callable[[], None]], float]  # runs the work once and says how many seconds it took


class Candidate(Protocol):
    """A way of running a stage: what files call it, and what it takes by counts."""

    name: str
    cost: float


Way = TypeVar("Way", bound=Candidate)


class Choices:
    """What was found fastest on one device.

    Args:
        clock: times a run.
        file: where choices are remembered; None for the process alone.
        anew: whether what the file has is measured again.
        capturing: whether a CUDA graph is being captured, in which nothing can be timed.
        least: the counted cost from which on a stage is worth trials.

    >>> from types import SimpleNamespace
    >>> times = iter([3.0, 3.0, 3.0, 2.0, 2.0, 2.0])
    >>> found = Choices(lambda work: next(times))
    >>> ways = [SimpleNamespace(name=name, cost=1.0) for name in ("inputs", "outputs")]
    >>> found.choose("a layer", iter(ways), lambda way: None).name, found.table()[0]["gain"]
    ('outputs', 1.5)
    """

    def __init__(self, clock: Clock, file: Path | None = None, anew: bool = False,
                 capturing: Callable[[], bool] = lambda: False, least: float = 0.0) -> None:
        self._clock, self._file, self._capturing, self._least = clock, file, capturing, least
        self._found: dict[str, dict] = {} if file is None or anew else _read(file)
        self._measured: dict[str, dict] = {}  # by this process, which its file gets
        self._lock = RLock()  # two threads that time at once would each time the other's work

    def choose(self, key: str, ways: Iterator[Way], trial: Callable[[Way], None]) -> Way:
        """The way to run a stage of this key: remembered, or else the fastest of those that are tried now.

        Args:
            ways: the counted choice, then others; asked for no more than are needed.
            trial: runs a way where that changes nothing.

        Raises:
            OutOfMemoryError: there is no room for a trial; nothing is remembered.
            Exception: of the counted choice, where none of the ways runs.
        """
        counted = next(ways)
        with self._lock:
            found = self._found.get(key)
            if found is not None:
                # Where a name fits none, the counts of this stage, of the same key as another, put that way beyond.
                return next((way for way in chain([counted], ways) if way.name == found["chosen"]), counted)
            if counted.cost < self._least or self._capturing():
                return counted
            tried = _worth_trying(counted, ways)
            if len(tried) == 1:
                return counted
            return self._try(key, tried, trial)

    def _try(self, key: str, ways: list[Way], trial: Callable[[Way], None]) -> Way:
        seconds: dict[str, float] = {}
        errors: dict[str, Exception] = {}
        for way in ways:
            try:
                trial(way)
                seconds[way.name] = median(self._clock(lambda way=way: trial(way)) for _ in range(RUNS))
            except torch.OutOfMemoryError:  # which says nothing of the way
                raise
            except Exception as error:  # a compiler's or a driver's, of many types
                errors[way.name] = error
        counted = ways[0]
        if not seconds:
            raise errors[counted.name]
        best = min((way for way in ways if way.name in seconds), key=lambda way: seconds[way.name])
        if counted.name in seconds and seconds[best.name] > GAIN * seconds[counted.name]:
            best = counted
        failed = {name: f"{type(error).__name__}: {error}".splitlines()[0] for name, error in errors.items()}
        self._measured[key] = self._found[key] = {"chosen": best.name, "counted": counted.name, "seconds": seconds,
                                                  "failed": failed}
        self._write()
        return best

    def refuse(self, key: str, way: Candidate, error: Exception) -> None:
        """A remembered way that does not run here: forgotten by this process, with a warning."""
        with self._lock:
            self._found.pop(key, None)
            self._measured.pop(key, None)
        warnings.warn(f"the remembered way of {key}, {way.name}, does not run and the counted one does instead: "
                      f"{type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)

    def table(self) -> list[dict]:
        """Of each stage that was measured, here or by whoever wrote the file: its key, the counted choice and the
        chosen one, how many times as fast that is (None where the counted one does not run), all times in seconds,
        and what did not run."""
        rows = []
        with self._lock:
            for key, found in self._found.items():
                counted, chosen = (found["seconds"].get(found[which]) for which in ("counted", "chosen"))
                rows.append({"stage": key, **found, "gain": counted / chosen if counted and chosen else None})
        return rows

    def _write(self) -> None:
        """What this process measured, beside what others have written since; a process that writes between the two
        loses what it wrote, to be measured again."""
        if self._file is None:
            return
        there = _read(self._file, warns=False)
        kept = {key: value for key, value in there.items() if key not in self._measured} | self._measured
        kept = dict(list(kept.items())[-KEPT:])
        try:
            with replacing(self._file) as draft:
                draft.write_text(json.dumps({"format": FORMAT, "choices": kept}, indent=1) + "\n")
        except OSError as error:
            self._file = None
            warnings.warn(f"what was measured is not remembered: {error}", RuntimeWarning, stacklevel=2)


def _worth_trying(counted: Way, others: Iterable[Way]) -> list[Way]:
    """The counted choice, then the others in the order of their counts, without those far beyond the best."""
    rest = sorted(others, key=lambda way: way.cost)
    least = min(way.cost for way in [counted, *rest])
    return [counted, *(way for way in rest if way.cost <= BEYOND * least)][:MOST]


def _read(file: Path, warns: bool = True) -> dict[str, dict]:
    """The records of a file; none where it is not there, or with a warning where it is not what it should be."""
    try:
        with open(file, "rb") as opened:
            text = opened.read(MOST_BYTES + 1)
        return _checked(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        if warns:
            warnings.warn(f"{file} is not read, and what it held is measured anew: {error}", RuntimeWarning,
                          stacklevel=3)
        return {}


def _checked(text: bytes) -> dict[str, dict]:
    if len(text) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    found = json.loads(text)  # JSONDecodeError and UnicodeDecodeError are ValueErrors
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    records = found.get("choices")
    if not isinstance(records, dict):
        raise ValueError("it has no choices")
    for key, record in records.items():
        if not isinstance(record, dict) or record.keys() != _FIELDS.keys() \
                or not all(isinstance(record[name], kind) for name, kind in _FIELDS.items()):
            raise ValueError(f"the choice of {key!r} is no record of {', '.join(_FIELDS)}")
        for name, second in record["seconds"].items():
            if isinstance(second, bool) or not isinstance(second, (int, float)) or not 0 < second < math.inf:
                raise ValueError(f"{name!r} of {key!r} took {second!r} seconds")
    return records


class Events:
    """Seconds of work on a CUDA device, between two events."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, work: Callable[[], None]) -> float:
        with torch.cuda.device(self._device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # Launches queue up behind it, as they do in a captured pass: the host's time is not the kernel's.
            torch.cuda._sleep(WAIT)
            begin.record()
            work()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3


_by_device: dict[torch.device, Choices] = {}
_making = RLock()


def choices(device: torch.device) -> Choices | None:
    """The choices of a CUDA device, None where counts alone decide: elsewhere, and with SPECXAI_TUNE=0.

    Raises:
        ValueError: SPECXAI_TUNE is set to something else.

    >>> choices(torch.device("cpu"))
    """
    asked = os.environ.get("SPECXAI_TUNE", "")
    if asked not in ("", "0", "1", "again"):
        raise ValueError(f"SPECXAI_TUNE is {asked!r}; set it to 0 for counted choices, to again to measure anew, or to "
                         "nothing")
    if asked == "0":
        return None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    with _making:
        if device.type == "cuda" and device not in _by_device:
            _by_device[device] = Choices(Events(device), _file_of(device), asked == "again",
                                         torch.cuda.is_current_stream_capturing, LEAST)
        return _by_device.get(device)


@contextmanager
def using(device: torch.device, made: Choices) -> Iterator[Choices]:
    """Stages on the device ask `made`, also where nothing could be timed: for tests and rehearsals."""
    before = _by_device.get(device)
    _by_device[device] = made
    try:
        yield made
    finally:
        del _by_device[device]
        if before is not None:
            _by_device[device] = before


def _file_of(device: torch.device) -> Path | None:
    facts = torch.cuda.get_device_properties(device)
    name = re.sub(r"[^A-Za-z0-9]+", "-", facts.name).strip("-")
    try:
        return cache_folder() / f"{name}-{facts.major}.{facts.minor}-{kernels_version()}.json"
    except RuntimeError:  # the user has no home
        return None


def cache_folder() -> Path:
    """Where choices are remembered: below XDG_CACHE_HOME where that is an absolute path, else below ~/.cache."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "specxai/tuned"


def kernels_version() -> str:
    """Twelve digits that change with the kernels' text and with the compiler that makes code of it."""
    import triton

    found = hashlib.sha256(triton.__version__.encode())
    for file in sorted(resources.files("specxai.kernels").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            found.update(file.read_bytes())
    return found.hexdigest()[:12]
