"""Files that are whole or not there, whatever is in the way."""

from __future__ import annotations

import os
import threading
import time

import pytest

from specxai import _files
from specxai._files import replacing
from specxai._text import printable


def write(path, text: str = "new") -> None:
    with replacing(path) as draft:
        draft.write_text(text)


def gone() -> int:
    """The number of a process that has ended."""
    child = os.fork()
    if child == 0:  # pragma: no cover  (another process)
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_a_draft_cannot_be_guessed_or_reached(tmp_path):
    seen = []
    for _ in range(2):
        with replacing(tmp_path / "a.txt") as draft:
            seen.append(draft)
            assert draft.parent.stat().st_mode & 0o077 == 0
            draft.write_text("new")
    assert seen[0] != seen[1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_link_is_replaced_and_what_it_points_to_is_left(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("old")
    link.symlink_to(victim)
    write(link)
    assert (victim.read_text(), link.read_text(), link.is_symlink()) == ("old", "new", False)


@pytest.mark.parametrize("through_a_link", [False, True])
def test_what_is_no_file_stays(tmp_path, through_a_link):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"cannot write .* it is a device or a pipe, not a file; choose another place"):
        write(tmp_path / ("link" if through_a_link else "pipe"))
    with pytest.raises(OSError, match="it is a folder, not a file"):
        write(tmp_path)
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(OSError, match="/dev/null: it is a device"):
        write("/dev/null")


def test_threads_that_write_to_one_path(tmp_path):
    texts = [str(i) * 100_000 for i in range(6)]

    def work(text):
        for _ in range(20):
            write(tmp_path / "a.txt", text)
            assert (tmp_path / "a.txt").read_text() in texts

    failed = []
    threads = [threading.Thread(target=lambda t=t: work(t) or failed.append(t)) for t in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(failed) == texts  # each came to its end
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_what_killed_processes_left_goes(tmp_path):
    dead = gone()
    old = time.time() - 2 * _files.STALE
    names = {f".part-{dead}-old": old, f".part-{dead}-young": time.time(), f".part-{os.getpid()}-mine": old,
             ".part-notes": old}
    for name, when in names.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("")
        os.utime(tmp_path / name / "half", (when, when))
        os.utime(tmp_path / name, (when, when))
    write(tmp_path / "a.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", *names} - {f".part-{dead}-old"}


def test_cleaning_up_hides_no_error(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        if not options.get("ignore_errors"):
            raise OSError(30, "Read-only file system")

    monkeypatch.setattr(_files.shutil, "rmtree", refuse)
    with pytest.raises(OSError, match="No space left"), replacing(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")


def test_names_cannot_command_a_terminal():
    assert printable("a\x1b[31mb\nc\u202ed") == "a\\x1b[31mb\\nc\\u202ed"
    assert printable("größe.0 #1") == "größe.0 #1"
