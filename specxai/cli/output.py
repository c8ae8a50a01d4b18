"""The folder of a run's results: all of them or none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from specxai._files import cause, drafts
from specxai._version import __version__


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder inside `out` to write to; at the end its files move to `out`, on an error they are removed.

    What runs that were killed left in `out` is removed.

    Entered before the work: an `out` that cannot be written to is found at once, with an OSError that says why.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        stage = drafts(out)
    except OSError as error:
        _remove(made)
        raise OSError(f"cannot write to {out}: {cause(out, error)}; give another folder with --out") from error
    try:
        yield stage
        for path in sorted(stage.iterdir()):
            if (out / path.name).is_dir():
                raise OSError(f"cannot write {out / path.name}: a folder has that name; remove it, or give another "
                              "folder with --out")
        for path in sorted(stage.iterdir()):
            path.replace(out / path.name)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)  # the error is what to report
        _remove(made)
        raise
    shutil.rmtree(stage, ignore_errors=True)


def save_settings(settings: dict, folder: Path) -> dict:
    """Write settings.json, with the version, and return what it says."""
    stored = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    stored["specxai"] = __version__
    (folder / "settings.json").write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    return stored


def _remove(folders: list[Path]) -> None:
    """Those that are empty, the innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
