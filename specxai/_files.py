"""Writing files that are whole or not there."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STALE = 3600  # seconds without a change after which a draft is no longer written to, if its process is gone too
_DRAFT = re.compile(r"\.part-(\d+)-\w+")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A draft beside `path` to write to, which takes its place at the end and is removed on an error.

    Missing folders are made.  A symbolic link at `path` is replaced, not followed; what is neither a file nor a link to
    one (a folder, a device, a pipe) is left alone.  Of threads and processes that write to one path the last one wins,
    whole.  Raises OSError naming the path where that cannot be.
    """
    path = Path(path)
    folder = None
    try:
        _check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = drafts(path.parent)
        draft = folder / path.name
        yield draft
        _check_replaceable(path)
        draft.replace(path)
    except OSError as error:
        raise type(error)(f"cannot write {path}: {cause(path.parent, error)}; choose another place") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # whatever went wrong before is what to report


def drafts(parent: Path) -> Path:
    """A new folder in `parent` for files that are being written, which no one else can write to or guess.

    What processes that were killed left there is removed.
    """
    for left in parent.glob(".part-*"):
        if _abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f".part-{os.getpid()}-", dir=parent))


def cause(folder: Path, error: OSError) -> str:
    """Why a folder cannot be written to: a file in its way, or what the system says."""
    in_the_way = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
    return f"{in_the_way} is a file, not a folder" if in_the_way else error.strerror or str(error)


def _check_replaceable(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError:  # not there, a link to nothing, or a folder that writing will complain of
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise OSError(f"it is {kind}, not a file")


def _abandoned(folder: Path) -> bool:
    """Has the process that made a folder of drafts ended, and some time ago: it may run on another machine?"""
    found = _DRAFT.fullmatch(folder.name)
    with suppress(OSError):
        if not found or folder.is_symlink() or not folder.is_dir():
            return False
        newest = max(entry.lstat().st_mtime for entry in (folder, *folder.iterdir()))
        return time.time() - newest > STALE and not _alive(int(found[1]))
    return False


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # someone else's
        return True
    return True
