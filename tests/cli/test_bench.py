"""`specxai bench`: tables on the screen, numbers in a folder, errors in one line."""

from __future__ import annotations

import json

import pytest

from specxai.cli import main


def test_tables_and_numbers(tmp_path, capsys):
    out = tmp_path / "bench"
    assert main(["bench", "--cases", "digits", "--questions", "exact", "--peers", "specxai reference", "specxai auto",
                 "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "## digits exact" in said.out
    assert said.err.count("digits exact: specxai") >= 1
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md", "settings.json"]
    rows = json.loads((out / "bench.json").read_text())["rows"]
    assert all(row["median"] > 0 and row["residual"] < 1e-4 for row in rows)


@pytest.mark.parametrize("arguments, message", [
    (["--cases", "digit"], "no case is named 'digit'; there are digits, .*; did you mean digits?"),
    (["--peers", "jax"], "no peer is named 'jax'"), (["--questions", "all"], "no question is named 'all'"),
    (["--cases", "autoencoder8", "--questions", "equal"], "autoencoder8 have no answer to equal; leave --questions"),
    (["--threads", "0"], "--threads 0 is out of range"),
])
def test_errors_name_the_remedy(arguments, message, capsys, tmp_path):
    assert main(["bench", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert message.split(".*")[0] in error
    assert not (tmp_path / "out").exists()
