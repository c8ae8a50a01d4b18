"""The pages: their examples run, and the files and functions that they name exist."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

import pytest

from specxai.rules.pooling import extreme

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
EXAMPLE = re.compile(r"^```pycon\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples(page: Path) -> str:
    return "\n".join(EXAMPLE.findall(page.read_text()))


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=lambda page: page.name)
def test_examples_of_a_page_run(page):
    case = doctest.DocTestParser().get_doctest(examples(page), {}, page.name, str(page), 0)
    result = doctest.DocTestRunner().run(case)
    assert result.failed == 0
    assert result.attempted > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"`((?:specxai|csrc|tests|docs|benchmarks|kernels)/[\w/.*<>-]+)`", page.read_text())
    missing = [name for name in named if "<" not in name and not list(ROOT.glob(name.rstrip("/")))]
    assert missing == []


def test_the_page_about_rules_shows_the_rule_that_is_there():
    patch = (ROOT / "docs" / "max-over-an-axis.patch").read_text().split("\n")
    source = inspect.getsource(extreme).rstrip("\n").split("\n")
    assert [line for line in source if f"+{line}" not in patch] == []


def test_the_page_about_rules_quotes_its_own_change():
    page, patch = ((ROOT / "docs" / name).read_text() for name in ("write-a-rule.md", "max-over-an-axis.patch"))
    quoted = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)).split("\n")
    assert len(quoted) > 10
    assert [line for line in quoted if line and f"+{line}\n" not in patch] == []
