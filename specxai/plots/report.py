"""One self-contained HTML file for a list of explanations: figures inline, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specxai.plots.explanation import plot_explanation


@dataclass(frozen=True)
class Entry:
    """One explanation in a report: its heading, the input as people see it, and a line of context."""

    explanation: object
    heading: str
    image: object = None
    note: str = ""


def write_report(path: str | os.PathLike, entries: Sequence[Entry], title: str, intro: str = "",
                 settings: dict | None = None, rows: int = 10) -> Path:
    """Write the report and return its path.

    entries    what to show, in order; plain Explanations are taken too
    rows       contributions in each table, the largest first

    All text is escaped; the file is written under a temporary name and renamed.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    entries = [e if isinstance(e, Entry) else Entry(e, f"{e.target_label} at {e.layer}") for e in entries]
    environment = Environment(loader=PackageLoader("specxai.plots", "."), autoescape=True, undefined=StrictUndefined)
    template = environment.get_template("report.html.j2")
    html = template.render(title=title, intro=intro, settings=settings or {},
                           items=[_item(entry, rows) for entry in entries])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(html, encoding="utf-8")
    draft.replace(path)
    return path


def _item(entry: Entry, rows: int) -> dict:
    e = entry.explanation
    buffer = io.BytesIO()
    plot_explanation(e, image=entry.image, title=entry.heading).savefig(buffer, format="png", dpi=110)
    table = sorted(e.table(), key=lambda row: -abs(row["alpha"]))
    biases = sorted(e.bias_contributions.items(), key=lambda item: -abs(item[1]))
    reduction = e.reduce()
    return {
        "e": e, "heading": entry.heading, "note": entry.note,
        "figure": base64.b64encode(buffer.getvalue()).decode(),
        "table": table[:rows], "more": len(table) - min(rows, len(table)), "biases": biases[:8],
        "alpha": float(e.alpha.sum()),
        "sentence": _sentence(e, reduction),
        "symbolic": e.symbolic(top=5).text(),
    }


def _sentence(e, reduction) -> str:
    """The certificate in words."""
    share = abs(e.bias) / (abs(float(e.alpha.sum())) + abs(e.bias) + abs(e.bypass) + abs(e.remainder) or 1.0)
    parts = [f"{len(e)} spectral components of layer {e.layer} reduce to {len(reduction.values)} of one sign",
             f"biases make up {share:.0%} of the terms by size",
             f"the two independent computations of the bias agree to {e.exactness:.0e}",
             f"all terms add up to the output to {e.completeness:.0e}"]
    if len(e):
        parts.append(f"every λ lies within {float(e.residuals.max()):.1e} of a true singular value")
    return "; ".join(parts) + "."
