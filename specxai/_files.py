"""Writing files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A draft beside `path` to write to, which takes its place at the end and is removed on an error.

    Missing folders are made.  Raises OSError naming the path where that cannot be.
    """
    path = Path(path)
    draft = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(path)
    except OSError as error:
        raise type(error)(f"cannot write {path}: {cause(path.parent, error)}; choose another place") from error
    finally:
        if draft.parent.is_dir():
            draft.unlink(missing_ok=True)


def cause(folder: Path, error: OSError) -> str:
    """Why a folder cannot be written to: a file in its way, or what the system says."""
    in_the_way = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
    return f"{in_the_way} is a file, not a folder" if in_the_way else error.strerror or str(error)
