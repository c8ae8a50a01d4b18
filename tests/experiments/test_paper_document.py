"""What docs/paper.md says: its numbers are those of the runs beside it, its functions and commands exist."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

from specxai.experiments import EXPERIMENTS

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "paper.md").read_text("utf-8")


def _quote():
    spec = importlib.util.spec_from_file_location("quote", DOCS / "paper" / "quote.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


quote = _quote()


def test_quoted_numbers_are_those_of_the_runs():
    assert len(quote.QUOTE.findall(TEXT)) > 10
    assert quote.quoted(TEXT) == TEXT, "run docs/paper/quote.py"


def test_every_run_that_is_kept_is_quoted():
    kept = {path.stem for path in (DOCS / "paper").glob("*.json")}
    assert {name for name, _ in quote.QUOTE.findall(TEXT)} == kept


def test_a_wrong_number_would_be_seen(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a": {"value": [0.5, 1]}, "tables": {"t": [{"a b": -2.0}]}}))
    text = "<!--= x a[0] -->0.5<!--/--> and <!--= x tables/t[0]/a_b -->7<!--/-->"
    assert quote.quoted(text, tmp_path) == text.replace("7", "−2")
    with pytest.raises(KeyError, match="'b' is not among"):
        quote.quoted("<!--= x b -->1<!--/-->", tmp_path)


def test_functions_and_commands_exist():
    names = set(re.findall(r"`(specxai(?:\.\w+)+)[`(]", TEXT))
    assert len(names) > 20
    for name in names:
        parts = name.split(".")
        for size in range(len(parts), 0, -1):  # the longest prefix that is a module
            try:
                place = importlib.import_module(".".join(parts[:size]))
            except ImportError:
                continue
            for part in parts[size:]:
                place = getattr(place, part)
            break
    commands = set(re.findall(r"`specxai reproduce (\w+)", TEXT))
    assert commands == {*EXPERIMENTS, "all"}


@pytest.mark.parametrize("number", range(1, 27))
def test_every_equation_has_its_place(number):
    assert re.search(rf"\({number}\)", TEXT)


@pytest.mark.parametrize("number", range(1, 14))
def test_every_figure_has_its_place(number):
    assert re.search(rf"^\| {number}[ab]? ?\|", TEXT, re.MULTILINE)
