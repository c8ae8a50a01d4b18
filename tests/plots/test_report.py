"""The report is one file that loads nothing, and escapes what it is given."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest
import torch

from specxai.plots import hover, write_report
from specxai.plots.report import Entry

EVIL = '<script>alert("x")</script> & "quotes" $\\frac'


@pytest.fixture
def undrawn(monkeypatch):
    """No pictures: these tests look at the page's own text."""
    monkeypatch.setattr("specxai.plots.report._png", lambda entry: b"")


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


def test_says_everything(explanation, tmp_path, undrawn):
    e = explanation()
    html = write_report(tmp_path / "r.html", [e], "Title", settings={"seed": 7}).read_text("utf-8")
    for word in ("<title>Title</title>", "features.3", "output[1]", "+0.25", "−0.5", "+0.125", "1e-07", "ĉ_{",
                 "two independent ways", "How to read this", '"seed": 7', "Paths round the layer", "features.0"):
        assert word in html, word
    assert html.count("<tr><td>") == len(e) + len(e.bias_contributions)


@pytest.mark.parametrize("agreement, words", [
    (3.2e-8, ["along random directions, agree to 3e-08", "agreement 3.2e-08"]),
    (None, ["was not compared with the model", "agreement not checked"]),
])
def test_agreement_is_a_number_or_said_to_be_missing(explanation, tmp_path, undrawn, agreement, words):
    html = write_report(tmp_path / "r.html", [explanation(agreement=agreement)], "t").read_text("utf-8")
    for word in [*words, "<dt>Agreement</dt>"]:
        assert word in html, word
    assert "agreement 0" not in html


def test_says_what_ran_each_part(explanation, tmp_path, undrawn):
    told = explanation(backends={"decomposition": "native", "targets": "reference"})
    html = write_report(tmp_path / "r.html", [told, explanation()], "t").read_text("utf-8")
    assert "decomposition on native, targets on reference" in html
    assert "backend reference" in html


def test_escapes(explanation, tmp_path, undrawn):
    e = explanation(layer=EVIL, target_label=EVIL, bias_contributions={EVIL: 1.0})
    entries = [Entry(e, EVIL, note=EVIL), e]
    html = write_report(tmp_path / "r.html", entries, EVIL, EVIL, {"model": EVIL}).read_text("utf-8")
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


def test_settings_are_readable_json(explanation, tmp_path, undrawn):
    html = write_report(tmp_path / "r.html", [explanation()], "t", settings={"a": "</script>"}).read_text("utf-8")
    assert "\\u003c/script\\u003e" in html


def test_every_component_can_be_pointed_at(explanation, tmp_path, undrawn):
    e = explanation()
    html = write_report(tmp_path / "r.html", [e], "t").read_text("utf-8")
    tips = re.findall(r"<title>(k = .*?)</title>", html, re.DOTALL)
    assert len(tips) == len(e)
    assert f"α = {e.alpha[2]:.4g}".replace("-", "−") in tips[2]
    assert "<script" not in html


def test_bars_are_in_proportion_to_alpha(explanation):
    e = explanation()
    drawn = hover.spectrum(e)
    heights = np.array([bar.height for bar in drawn.bars])
    assert np.allclose(heights / heights.max(), (e.alpha.abs() / e.alpha.abs().max()).numpy(), atol=5e-3)
    assert [bar.sign for bar in drawn.bars] == ["plus" if a >= 0 else "minus" for a in e.alpha.tolist()]
    assert all(0 <= bar.top <= bar.top + bar.height <= hover.HEIGHT for bar in drawn.bars)


@pytest.mark.parametrize("alpha", [[0.0, 0.0], [-1.0, -2.0], [1e-30, 1e30]])
def test_any_contributions_can_be_drawn(explanation, alpha):
    drawn = hover.spectrum(explanation(k=2, alpha=torch.tensor(alpha, dtype=torch.float64)))
    assert all(0 <= bar.top <= bar.top + bar.height <= hover.HEIGHT + 1 for bar in drawn.bars)


def test_a_picture_that_is_there_is_not_drawn_again(explanation, tmp_path):
    (tmp_path / "p.png").write_bytes(b"a picture")
    html = write_report(tmp_path / "r.html", [Entry(explanation(), "h", picture=tmp_path / "p.png")], "t")
    html = html.read_text("utf-8")
    assert base64.b64encode(b"a picture").decode() in html


def test_no_bypass_is_said_in_words(explanation, tmp_path, undrawn):
    e = explanation(bypass=0.0, settings={"bypass": False})
    html = write_report(tmp_path / "r.html", [e], "t").read_text("utf-8")
    assert "bypass<b>none</b>" in html


def test_a_report_that_cannot_be_written(explanation, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file is a file, not a folder; choose another place"):
        write_report(tmp_path / "file" / "r.html", [Entry(explanation(), "h", picture=tmp_path / "file")], "t")


def test_equal_explanations_give_equal_reports(explanation, tmp_path):
    first, second = (write_report(tmp_path / name, [explanation()], "t").read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("k", [0, 1])
def test_few_components(explanation, tmp_path, k):
    assert write_report(tmp_path / "r.html", [explanation(k=k)], "t").stat().st_size > 10_000


def test_images_must_match(explanation, tmp_path):
    with pytest.raises(ValueError, match="one each"):
        write_report(tmp_path / "r.html", [explanation()], "t", images=[])
