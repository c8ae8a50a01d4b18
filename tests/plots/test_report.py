"""The report is one file that loads nothing, and escapes what it is given."""

from __future__ import annotations

import json
import re

import pytest

from specxai.plots import write_report
from specxai.plots.report import Entry

EVIL = '<script>alert("x")</script> & "quotes" $\\frac'


def test_self_contained(explanation, tmp_path):
    path = write_report(tmp_path / "r" / "report.html", [explanation()], "A title", "An intro", {"seed": 0})
    html = path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert "data:image/png;base64," in html
    assert len(html) < 6_000_000
    loads = re.findall(r"""(?:src|href|action|data)\s*=\s*["']?([^"'\s>]+)""", html)
    assert loads
    assert all(target.startswith(("data:", "#")) for target in loads)
    assert not re.search(r"<link|@import|url\(|https?://", html)


def test_says_everything(explanation, tmp_path):
    e = explanation()
    html = write_report(tmp_path / "r.html", [e], "Title", settings={"seed": 7}, plotly=False).read_text("utf-8")
    for word in ("<title>Title</title>", "features.3", "output[1]", "+0.25", "−0.5", "+0.125", "1e-07", "ĉ_{",
                 "two independent ways", "How to read this", '"seed": 7', "Paths round the layer", "features.0"):
        assert word in html, word
    assert html.count("<tr><td>") == len(e) + len(e.bias_contributions)


def test_escapes(explanation, tmp_path):
    e = explanation(layer=EVIL, target_label=EVIL, bias_contributions={EVIL: 1.0})
    entries = [Entry(e, EVIL, note=EVIL), e]
    html = write_report(tmp_path / "r.html", entries, EVIL, EVIL, {"model": EVIL}).read_text("utf-8")
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


def test_settings_are_readable_json(explanation, tmp_path):
    html = write_report(tmp_path / "r.html", [explanation()], "t", settings={"a": "</script>"}).read_text("utf-8")
    assert "\\u003c/script\\u003e" in html


def test_plotly_is_optional(explanation, tmp_path):
    without = write_report(tmp_path / "a.html", [explanation()], "t", plotly=False).read_text("utf-8")
    assert "Plotly" not in without
    pytest.importorskip("plotly")
    html = write_report(tmp_path / "b.html", [explanation()], "t", plotly=True).read_text("utf-8")
    figures = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', html)]
    assert [figure["data"][0]["type"] for figure in figures] == ["bar", "waterfall"]


def test_equal_explanations_give_equal_reports(explanation, tmp_path):
    first, second = (write_report(tmp_path / name, [explanation()], "t").read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("k", [0, 1])
def test_few_components(explanation, tmp_path, k):
    assert write_report(tmp_path / "r.html", [explanation(k=k)], "t").stat().st_size > 10_000


def test_images_must_match(explanation, tmp_path):
    with pytest.raises(ValueError, match="one each"):
        write_report(tmp_path / "r.html", [explanation()], "t", images=[])
