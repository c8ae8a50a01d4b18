"""Texts with coloured tokens: every token is drawn inside the picture, in the colour of its sign, with its legend."""

from __future__ import annotations

import re

import matplotlib.text
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from specxai.plots import draw_tokens, tokens_html, write_tokens
from specxai.spectral import Contributions

NAMES = ["[CLS]", "how", "##ever", "<b>", "a & b", "größe", "", "x\ny", "$\\frac{1}"] * 6


def sum_of(alpha: torch.Tensor) -> Contributions:
    return Contributions(alpha, -0.5, float(alpha.sum()) - 0.5, "output[3]")


def test_tokens_lie_in_lines_inside_the_picture_and_do_not_overlap():
    axis = draw_tokens(sum_of(torch.randn(len(NAMES))), NAMES)
    canvas = FigureCanvasAgg(axis.figure)
    canvas.draw()
    drawn = [text for text in axis.texts if text.get_bbox_patch() is not None]
    boxes = [text.get_bbox_patch().get_window_extent(canvas.get_renderer()) for text in drawn]
    width, height = canvas.get_width_height()
    assert len(drawn) == len(NAMES)
    assert len({round(box.y0) for box in boxes}) > 2
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[:i])


def test_colours_are_signed_and_on_one_scale():
    axis = draw_tokens([1.0, -1.0, 0.0, 0.1], list("abcd"))
    r, g, b = zip(*(to_rgb(text.get_bbox_patch().get_facecolor()) for text in axis.texts[:4]), strict=True)
    assert r[0] > 2 * b[0]
    assert b[1] > 2 * r[1]
    assert min(r[2], g[2], b[2]) > 0.95
    assert r[3] > b[3] > 0.8
    faint = draw_tokens([1.0, -1.0, 0.0, 0.1], list("abcd"), half=10.0).texts[0].get_bbox_patch().get_facecolor()
    assert min(faint[:3]) > 0.8


def test_the_legend_says_what_red_means_and_how_the_sum_ends():
    axis = draw_tokens(sum_of(torch.tensor([2.0, -1.0])), ["a", "b"])
    words = "\n".join(text.get_text() for text in axis.figure.findobj(matplotlib.text.Text))
    for part in ("red: raises output[3], up to +2", "blue: lowers it", "tokens +1, bias −0.5, together +0.5"):
        assert part in words


def test_html_is_escaped_and_has_every_number():
    html = tokens_html(sum_of(torch.arange(len(NAMES)) - 3.0), NAMES)
    assert "<b>" not in re.sub(r"<b style=[^>]*>", "", html)
    assert "&lt;b&gt;" in html
    assert "a &amp; b" in html
    assert html.count("<span") == len(NAMES)
    assert 'title="token 5: +2"' in html
    assert "raises output[3]" in html


def test_a_page_is_one_file_that_loads_nothing(tmp_path):
    entries = [("<one>", sum_of(torch.ones(2)), ["a", "b"]), ("two", [0.0, 0.0], ["c", "d"], "a note & more")]
    page = write_tokens(tmp_path / "deep" / "page.html", entries, "Tokens & more", "An intro").read_text()
    for part in ("&lt;one&gt;", "a note &amp; more", "Tokens &amp; more", "An intro", 'style="background:#'):
        assert part in page
    assert not re.search(r"(src|href)\s*=", page)


@pytest.mark.parametrize("alpha, names, words", [
    ([1.0, 2.0], ["a"], "got 1"), ([1.0, 2.0], "ab", "got one string"), ([[1.0]], ["a"], "as many tokens"),
    ([float("nan")], ["a"], "nan or inf")])
def test_what_cannot_be_drawn(alpha, names, words):
    for draw in (draw_tokens, tokens_html):
        with pytest.raises(ValueError, match=words):
            draw(alpha, names)
