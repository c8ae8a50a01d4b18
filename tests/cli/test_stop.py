"""Signals to the command line: drafts go, one line is printed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

CODE = """
import sys, time
from pathlib import Path
from specxai.cli.output import staged
from specxai.cli.stop import stoppable
with stoppable("specxai"), staged(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind, status, line", [
    (signal.SIGTERM, 143, "specxai: stopped by SIGTERM"), (signal.SIGHUP, 129, "specxai: stopped by SIGHUP"),
    (signal.SIGINT, 130, "specxai: interrupted")])
def test_a_signal_removes_drafts_and_prints_one_line(tmp_path, kind, status, line):
    process = subprocess.Popen([sys.executable, "-c", CODE, str(tmp_path / "out")], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    assert len(os.listdir(tmp_path / "out")) == 1
    process.send_signal(kind)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip()) == (status, line)
    assert not list(tmp_path.iterdir())
