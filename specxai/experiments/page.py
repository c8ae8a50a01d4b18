"""A study as one self-contained page: text, figures inlined, tables, interactive elements, every number."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from specxai._files import replacing

__all__ = ["shown", "write_contents", "write_page"]


def write_page(path: Path, study, summary: str = "") -> None:
    """Write the page of a Study; under a temporary name, then renamed."""
    items = [{**item, **({"png": base64.b64encode(item["png"]).decode()} if item["kind"] == "figure" else {}),
              **({"html": paragraphs(item["text"])} if item["kind"] == "text" else
                 {"caption": _inline(item["caption"])})}
             for item in study.items]
    for item in items:
        if item["kind"] == "table":
            item["columns"] = list(dict.fromkeys(column for row in item["rows"] for column in row))
    _render(path, "page.html.j2", title=study.name, summary=summary, items=items, numbers=_rows(study),
            quick=study.quick, seed=study.seed, options=study.options)


def write_contents(path: Path, title: str, entries: Sequence[tuple[str, str, Sequence[str]]]) -> None:
    """Write a page that links others: (name, summary, lines of numbers); each lies in a folder of its name."""
    _render(path, "contents.html.j2", title=title, entries=entries)


def shown(entry: Mapping) -> str:
    """A number as people read it, with its interval.

    >>> shown({"value": 0.123456, "interval": [0.1, 0.15]}), shown({"value": None})
    ('0.1235 [0.1, 0.15]', 'not defined')
    """
    value = entry["value"]
    if value is None:
        return "not defined"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text + (" [{:.4g}, {:.4g}]".format(*entry["interval"]) if "interval" in entry else "")


def paragraphs(text: str) -> str:
    """HTML of the little markup that `Study.text` understands.

    >>> paragraphs("# A < B\\nSome **bold**\\n\\n- `x`\\n- y,\\n  on two lines")
    '<h2>A &lt; B</h2>\\n<p>Some <b>bold</b></p>\\n<ul><li><code>x</code></li><li>y, on two lines</li></ul>'
    """
    parts = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in block.splitlines()]
        if lines[0].startswith("# "):
            parts.append(f"<h2>{_inline(lines.pop(0)[2:])}</h2>")
        if not lines:
            continue
        if lines[0].startswith("- "):
            items = re.split(r"^- ", "\n".join(lines), flags=re.MULTILINE)[1:]
            parts.append("<ul>" + "".join(f"<li>{_inline(' '.join(one.split()))}</li>" for one in items) + "</ul>")
        else:
            parts.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "\n".join(parts)


def _inline(line: str) -> str:
    line = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(line, quote=False))
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", line)


def _rows(study) -> list[dict]:
    rows = []
    for path, entry in study.leaves():
        value = entry["value"]
        text = f"{_length(value)}, in numbers.json" if isinstance(value, list) and len(value) > 8 else (
            ", ".join(shown({"value": one}) for one in value) if isinstance(value, list) else shown(entry))
        rows.append({"path": path, "value": text, "note": entry.get("note", ""), "paper": entry.get("paper", "")})
    return rows


def _length(value: list) -> str:
    sizes = []
    while isinstance(value, list):
        sizes.append(str(len(value)))
        value = value[0] if value else None
    return " × ".join(sizes) + " numbers"


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _render(path: Path, template: str, **values) -> None:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(name, ".") for name in ("specxai.experiments", "specxai.plots")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    html = environment.get_template(template).render(cell=_cell, **values)
    with replacing(path) as draft:
        draft.write_text(html, "utf-8")
