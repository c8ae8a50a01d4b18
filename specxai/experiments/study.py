"""A study: one named experiment that writes figures, tables, numbers and a page to a folder, step by step."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import platform
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from specxai import __version__
from specxai._files import cause, drafts, replacing
from specxai.experiments.page import shown, write_page
from specxai.experiments.progress import Progress
from specxai.experiments.steps import digest, read_step, rounded, write_step

__all__ = ["Study", "require"]

DIGITS = 6  # of the numbers that are reported; those beyond are rounding's, and differ between machines
DPI = 140
_NAME = re.compile(r"[\w.+-]+")


class Study:
    """One run of an experiment.

    out       folder for everything, made if missing
    name      of the experiment
    quick     a smaller run that shows the same
    seed      of everything that is drawn
    options   the flags that the experiment reads, with their values; those that are None are left out
    progress  makes the progress bars
    fresh     do every step again, whatever an earlier run has left

    A step's result is kept in out/steps, so that a run that was killed goes on where it was.  The same seed and options
    give the same numbers.json.  Raises OSError where the folder cannot be written to.

    >>> import tempfile
    >>> study = Study(Path(tempfile.mkdtemp()) / "sums", "sums", seed=3, progress=Progress(False))
    >>> drawn = study.step("draw", lambda: {"x": torch.rand(4, generator=study.generator())})
    >>> study.number("mean", drawn["x"].mean(), note="of four numbers", paper="about 0.5")
    >>> study.finish().name
    'index.html'
    """

    def __init__(self, out: Path, name: str, quick: bool = False, seed: int = 0, options: Mapping | None = None,
                 progress: Progress | None = None, *, fresh: bool = False) -> None:
        self.out, self.name, self.quick, self.seed = Path(out), name, quick, seed
        self.options = {key: value for key, value in (options or {}).items() if value is not None}
        self.progress, self.fresh = progress or Progress(), fresh
        self.numbers: dict = {}
        self.items: list[dict] = []
        self.seconds: dict[str, float] = {}
        self._chain = digest([__version__, name, quick, seed, {k: _identity(v) for k, v in self.options.items()}])
        self._bar, self._expected = None, None
        try:  # now, and not after minutes of work
            self.out.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(drafts(self.out))
            for file in ("index.html", "numbers.json", "run.json"):
                if (self.out / file).is_dir():
                    raise OSError(f"a folder has the name of {file}, which is to be written")
        except OSError as error:
            raise OSError(f"cannot write to {out}: {cause(self.out, error)}; give another folder with --out") from error

    # ---- work

    def expect(self, steps: int) -> None:
        """So many steps will come: gives the progress bar an end."""
        self._expected = steps

    def step(self, name: str, function: Callable[..., Mapping], *args, version: str = "") -> dict:
        """The result of function(*args), a dict of tensors, arrays, numbers, strings, lists and dicts of these.

        It is kept under out/steps and read from there by the next run that comes here by the same way: with the same
        experiment, quick, seed and options, after the same steps, with the same `version` and the same numbers and
        strings among `args` (other arguments should come from earlier steps).  Raise `version` when the function
        changes.  torch's, NumPy's and Python's global generators start from a seed of the step's own, so the result is
        the same whether or not the steps before were read.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"step {name!r} would be no file name: use letters, digits, . + - and _")
        plain = [a for a in args if a is None or isinstance(a, bool | int | float | str)]
        self._chain = digest([self._chain, name, version, plain])
        path = self.out / "steps" / f"{name}-{self._chain}.safetensors"
        if self._bar is None:
            self._bar = self.progress.bar(self._expected, self.name, "step")
        self._bar.set_description(f"{self.name}: {name}")
        start = time.perf_counter()
        result = None if self.fresh else read_step(path)
        if result is None:
            try:
                with _seeded(int(digest([self.seed, name]), 16)):
                    result = function(*args)
            except BaseException:
                self._close()  # what is printed next is not to stand behind a bar
                raise
            if not isinstance(result, Mapping):
                raise TypeError(f"step {name!r} returned {type(result).__name__}, not a dict")
            write_step(path, result)
            result = read_step(path)
        self.seconds[name] = round(time.perf_counter() - start, 2)
        self._bar.update(1)
        return result

    def generator(self, offset: int = 0) -> torch.Generator:
        """A generator of its own for every offset, from the seed."""
        return torch.Generator().manual_seed((self.seed + 1_000_003 * offset) % 2**63)

    def sub(self, name: str, options: Mapping | None = None) -> Study:
        """The study of another experiment in a folder of that name inside this one's."""
        return Study(self.out / name, name, self.quick, self.seed, self.options if options is None else options,
                     self.progress, fresh=self.fresh)

    # ---- results

    def number(self, path: str, value, interval: Sequence[float] | None = None, note: str = "",
               paper: str = "") -> None:
        """Report a number, or an array or list of them, under a path such as "test/r2".

        interval  (low, high), say in `note` of which kind
        paper     what the paper says of it
        value     None for one that is not defined here, with a note that says why
        """
        entry = {"value": rounded(value, DIGITS)}
        if interval is not None:
            low, high = interval
            entry["interval"] = rounded([low, high], DIGITS)
        _finite(entry, path)
        entry |= {key: text for key, text in (("note", note), ("paper", paper)) if text}
        *groups, last = path.split("/")
        place = self.numbers
        for group in groups:
            place = place.setdefault(group, {})
            if "value" in place:
                raise ValueError(f"number {path!r}: {group!r} is a number already, so it cannot hold others")
        if last in place or last == "value" or path.startswith("tables/"):
            raise ValueError(f"number {path!r} is there already, or its name is taken: choose another")
        place[last] = entry

    def figure(self, name: str, figure, caption: str, *, svg: bool = True) -> None:
        """Keep a matplotlib figure as NAME.png and NAME.svg, show it on the page, and close it."""
        self._check(name)
        with self._drawing(name):
            memory = io.BytesIO()
            figure.savefig(memory, format="png", dpi=DPI, metadata={"Software": None})
            with replacing(self.out / f"{name}.png") as draft:
                draft.write_bytes(memory.getvalue())
            if svg:
                with replacing(self.out / f"{name}.svg") as draft:
                    figure.savefig(draft, format="svg", metadata={"Date": None, "Creator": None})
        if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
            pyplot.close(figure)
        self.items.append({"kind": "figure", "name": name, "caption": caption, "png": memory.getvalue(), "svg": svg})

    def table(self, name: str, rows: Sequence[Mapping], caption: str) -> None:
        """Keep rows {column: number or text}, in numbers.json under "tables" and on the page."""
        self._check(name)
        rows = rounded(list(rows), DIGITS)
        _finite(rows, name)
        self.numbers.setdefault("tables", {})[name] = rows
        self.items.append({"kind": "table", "name": name, "caption": caption, "rows": rows})

    def text(self, text: str) -> None:
        """Paragraphs for the page, an empty line between them; "# " starts a heading, "- " a list's line; `code` and
        **bold** are understood, all else is taken literally."""
        self.items.append({"kind": "text", "text": text})

    def page3d(self, name: str, html: str, caption: str) -> None:
        """An interactive element: an HTML fragment that loads nothing, inserted as it is."""
        self._check(name)
        found = re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//[^"'\s>]+|@import|\bfrom\s+["']https?:""", html)
        if found:
            raise ValueError(f"the element {name!r} loads {found[0][:80]!r}; a page must be self-contained: put it in")
        self.items.append({"kind": "page3d", "name": name, "caption": caption, "html": html})

    def finish(self, summary: str = "") -> Path:
        """Write numbers.json, run.json and index.html, and return the page's path."""
        self._close()
        self._write("numbers.json", self.numbers)
        self._write("run.json", {"experiment": self.name, "quick": self.quick, "seed": self.seed,
                                 "options": {k: _shown(v) for k, v in self.options.items()}, "versions": _versions(),
                                 "threads": torch.get_num_threads(), "seconds": self.seconds})
        page = self.out / "index.html"
        write_page(page, self, summary)
        return page

    def lines(self) -> list[str]:
        """The numbers as text, a line each, with intervals."""
        return [f"{path} = {shown(entry)}" for path, entry in self.leaves() if not isinstance(entry["value"], list)]

    def leaves(self) -> Iterator[tuple[str, dict]]:
        """(path, {"value", maybe "interval", "note", "paper"}) of every number."""
        return _leaves({key: one for key, one in self.numbers.items() if key != "tables"}, "")

    # ---- inside

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _check(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} would be no file name: use letters, digits, . + - and _")
        if any(item.get("name") == name for item in self.items):
            raise ValueError(f"{name!r} is on the page already: choose another name")

    @contextlib.contextmanager
    def _drawing(self, name: str) -> Iterator[None]:
        from matplotlib import rc_context

        with rc_context({"svg.hashsalt": f"{self.name} {name}"}):  # else the ids in an SVG are random
            yield

    def _write(self, name: str, content: dict) -> None:
        with replacing(self.out / name) as draft:
            draft.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def require(module: str, package: str | None = None) -> ModuleType:
    """An optional module; where it is missing, ImportError says how to get it.

    >>> require("json").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this experiment needs {package or module}, which cannot be imported ({error}): "
                          "pip install 'specxai[paper]'") from error


def _leaves(place: Mapping, prefix: str) -> Iterator[tuple[str, dict]]:
    for key, one in place.items():
        if "value" in one:
            yield prefix + key, one
        else:
            yield from _leaves(one, f"{prefix}{key}/")


def _finite(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, no finite number: look for a division by zero or a training that "
                         "diverged, or report None with a note")
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        _finite(one, where)


def _identity(value: object) -> object:
    """An option as a step's key holds it: of a file also its size and time, since its content may change."""
    if isinstance(value, list | tuple):
        return [_identity(one) for one in value]
    if isinstance(value, str | Path) and Path(value).is_file():
        status = Path(value).stat()
        return [str(Path(value).resolve()), status.st_size, status.st_mtime_ns]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _shown(value: object) -> object:
    return [_shown(one) for one in value] if isinstance(value, list | tuple) else (
        value if isinstance(value, bool | int | float | str) else str(value))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators from a seed inside, and as they were after."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _versions() -> dict[str, str]:
    found = {"specxai": __version__, "python": platform.python_version(), "torch": str(torch.__version__),
             "numpy": np.__version__}
    for name in ("captum", "skimage", "sklearn", "timm", "torchvision"):
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", "?"))
    return found
