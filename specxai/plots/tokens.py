"""What tokens contribute, as a picture over the text: red tokens raise the target, blue ones lower it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath

from specxai._files import replacing
from specxai._text import printable
from specxai.plots.heatmap import BLUE, INK, PALETTE, RED, SOFT
from specxai.plots.spectrum import signed

__all__ = ["draw_tokens", "tokens_html", "write_tokens"]

SIZE, LINE, WIDTH, PAD = 10.0, 21.0, 440.0, 6.0  # points: of the text, between lines, of the picture, round a token
FULL = 0.8  # of the palette's ends, which would hide the text


def draw_tokens(contributions, tokens: Sequence[str], axis: Axes | None = None, *, title: str | None = None,
                half: float | None = None) -> Axes:
    """Draw a text whose tokens are coloured by what they contribute; returns the axis.

    contributions   of `specxai.tokens(...).contributions(target)`, or numbers (T,)
    tokens          T strings
    half            |α| where the colours end; by default the largest here.  Give one for pictures that are compared

    Raises ValueError for another number of tokens, or contributions that are not finite.

    >>> draw_tokens([0.5, -0.2], ["good", "grief"]).get_title()
    'contributions of tokens'
    """
    alpha, names = _checked(contributions, tokens)
    half = _half(alpha) if half is None else half
    width = WIDTH if axis is None else _points(axis)
    places, lines = _laid_out(names, width)
    height = LINE * (lines + 0.4)
    if axis is None:
        room = (26.0, 46.0 if _total(contributions) else 26.0)  # points above and below the text
        whole = height + sum(room)
        figure = Figure(figsize=((width + 24) / 72, whole / 72), facecolor="white")
        axis = figure.add_axes((12 / (width + 24), room[1] / whole, width / (width + 24), height / whole))
    axis.set_xlim(0, width)
    axis.set_ylim(-height, 0)
    for name, value, (x, line) in zip(names, alpha, places, strict=True):
        colour, ink = _colours(value, half)
        axis.text(x + PAD / 2, -LINE * (line + 0.6), name, fontsize=SIZE, color=ink, va="center", ha="left",
                  parse_math=False, bbox={"boxstyle": "square,pad=0.22", "facecolor": colour, "edgecolor": "none"})
    axis.set_axis_off()
    label = _label(contributions)
    axis.legend(handles=[Patch(color=RED, label=f"red: raises {label}, up to {signed(half)}"),
                         Patch(color=BLUE, label=f"blue: lowers it, down to {signed(-half)}")], fontsize=7.5, ncols=2,
                frameon=False, labelcolor=INK, loc="upper center", bbox_to_anchor=(0.5, 0.0), borderaxespad=0.2,
                handlelength=1.0)
    if total := _total(contributions):
        axis.annotate(total, (0.5, 0), (0, -26), xycoords="axes fraction", textcoords="offset points", ha="center",
                      va="top", fontsize=7.5, color=SOFT, parse_math=False)
    axis.set_title(f"contributions of tokens{'' if label == 'the target' else ' to ' + label}" if title is None else
                   printable(title), fontsize=10, color=INK, parse_math=False)
    return axis


def tokens_html(contributions, tokens: Sequence[str], *, half: float | None = None) -> str:
    """The same as a piece of HTML: a paragraph of coloured tokens, each with its number on hover, and its legend.

    It needs no style sheet and no script; all text is escaped.  Arguments and errors as of `draw_tokens`.

    >>> '&lt;s&gt;' in tokens_html([0.5, -0.2], ["<s>", "grief"])
    True
    """
    from markupsafe import escape

    alpha, names = _checked(contributions, tokens)
    half = _half(alpha) if half is None else half
    spans = []
    for number, (name, value) in enumerate(zip(names, alpha, strict=True)):
        colour, ink = _colours(value, half)
        spans.append(f'<span style="background:{colour};color:{ink};padding:.1em .25em;border-radius:.15em" '
                     f'title="token {number}: {signed(float(value), 4)}">{escape(name)}</span>')
    label, total = escape(_label(contributions)), _total(contributions)
    key = (f'<b style="color:{RED}">red</b>: raises {label}, up to {signed(half)} · <b style="color:{BLUE}">blue</b>: '
           f"lowers it, down to {signed(-half)}" + (f" · {escape(total)}" if total else ""))
    return (f'<p style="line-height:1.9">{" ".join(spans)}</p>\n'
            f'<p style="font-size:smaller;color:{SOFT}">{key}</p>\n')


def write_tokens(path: str | os.PathLike, entries: Sequence[tuple], title: str, intro: str = "") -> Path:
    """Write a page of texts with coloured tokens, one self-contained HTML file, and return its path.

    entries   (heading, contributions, tokens), or with a fourth, a line of context; each has colours of its own scale

    The file is written under a temporary name and renamed; all text is escaped.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_tokens(Path(folder) / "page.html", [("one", [0.5, -0.2], ["good", "grief"])], "Tokens")
    ...     "grief" in path.read_text()
    True
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader("specxai.plots", "."), autoescape=True, undefined=StrictUndefined)
    items = [(entry[0], Markup(tokens_html(entry[1], entry[2])), entry[3] if len(entry) > 3 else "")
             for entry in entries]  # escaped where it was made
    html = environment.get_template("tokens.html.j2").render(title=title, intro=intro, items=items)
    with replacing(path) as draft:
        draft.write_text(html, encoding="utf-8")
    return Path(path)


def _checked(contributions, tokens: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    alpha = np.asarray(getattr(contributions, "alpha", contributions), dtype=float)
    if isinstance(tokens, str) or alpha.ndim != 1 or len(tokens) != len(alpha):
        raise ValueError(f"{len(alpha) if alpha.ndim == 1 else alpha.shape} contributions need as many tokens, a list "
                         f"of strings; got {'one string' if isinstance(tokens, str) else len(tokens)}")
    if not np.isfinite(alpha).all():
        raise ValueError("contributions hold nan or inf")
    return alpha, [printable(str(token)) or " " for token in tokens]


def _half(alpha: np.ndarray) -> float:
    return float(np.abs(alpha).max(initial=0)) or 1.0


def _colours(value: float, half: float) -> tuple[str, str]:
    """Of the background and of the text, which is legible on it."""
    share = float(np.clip(value / half, -1, 1)) * FULL
    r, g, b = (round(255 * part) for part in colormaps[PALETTE](0.5 + share / 2)[:3])
    return f"#{r:02x}{g:02x}{b:02x}", "#ffffff" if abs(share) > 0.6 else INK


def _label(contributions) -> str:
    return printable(getattr(contributions, "label", "the target"))


def _total(contributions) -> str:
    """The sum in words, of contributions that know their bias and their target's value."""
    if not hasattr(contributions, "bias"):
        return ""
    return (f"tokens {signed(float(contributions.alpha.sum()), 4)}, bias {signed(contributions.bias, 4)}, together "
            f"{signed(contributions.output, 4)}")


def _points(axis: Axes) -> float:
    """The axis' width in points."""
    return axis.get_position().width * axis.figure.get_figwidth() * 72


def _laid_out(names: list[str], width: float) -> tuple[list[tuple[float, int]], int]:
    """(x in points, line) of every token, and the number of lines."""
    places, x, line = [], 0.0, 0
    for name in names:
        # Dollars would be read as formulas, which are not drawn so; a path without an outline fails.
        outline = name.replace("$", "S") if name.strip() else "i"
        size = 1.04 * float(TextPath((0, 0), outline, size=SIZE).get_extents().x1) + 1.2 * PAD  # pixels round widths
        if x and x + size > width:
            x, line = 0.0, line + 1
        places.append((x, line))
        x += size
    return places, line + 1
