"""One self-contained HTML file for a list of explanations: figures inline, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from specxai.plots import interactive
from specxai.plots.explanation import plot_explanation

__all__ = ["Entry", "write_report"]


@dataclass(frozen=True)
class Entry:
    """One explanation in a report: its heading, the input as people see it, and a line of context.

    figure   what `plot_explanation` drew of it already; drawn here if left out
    """

    explanation: object
    heading: str
    image: object = None
    note: str = ""
    figure: Figure | None = None


def write_report(path: str | os.PathLike, entries: Sequence, title: str, intro: str = "",
                 settings: dict | None = None, *, images: Sequence | None = None, rows: int = 10,
                 plotly: bool | None = None) -> Path:
    """Write the report and return its path.

    entries    what to show, in order: `Entry`s or plain Explanations
    images     the inputs of plain Explanations as people see them, in the same order
    rows       contributions in each table, the largest first
    plotly     figures to hover over as well; None for where plotly is installed

    All text is escaped; the file is written under a temporary name and renamed.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if images is not None and len(images) != len(entries):
        raise ValueError(f"{len(images)} images for {len(entries)} explanations: give one each, None for none")
    images = images or [None] * len(entries)
    entries = [e if isinstance(e, Entry) else Entry(e, f"{e.target_label} at {e.layer}", image)
               for e, image in zip(entries, images, strict=True)]
    if plotly is None:
        plotly = interactive.available()
    environment = Environment(loader=PackageLoader("specxai.plots", "."), autoescape=True, undefined=StrictUndefined)
    template = environment.get_template("report.html.j2")
    html = template.render(title=title, intro=intro, settings=settings or {}, signed=_signed,
                           items=[_item(entry, rows, plotly) for entry in entries],
                           script=interactive.script() if plotly and entries else "")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(html, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _item(entry: Entry, rows: int, plotly: bool) -> dict:
    e = entry.explanation
    figure = entry.figure or plot_explanation(e, image=entry.image, title=entry.heading)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    table = sorted(e.table(), key=lambda row: -abs(row["alpha"]))
    biases = sorted(e.bias_contributions.items(), key=lambda item: -abs(item[1]))
    return {
        "e": e, "heading": entry.heading, "note": entry.note,
        "figure": base64.b64encode(buffer.getvalue()).decode(),
        "interactive": interactive.figures(e) if plotly else [],
        "table": table[:rows], "more": len(table) - min(rows, len(table)),
        "biases": biases[:8], "other_biases": sum(value for _, value in biases[8:]), "more_biases": len(biases[8:]),
        "alpha": float(e.alpha.sum()),
        "story": _story(e), "certificate": _certificate(e),
        "symbolic": e.symbolic(top=5).text(),
    }


def _story(e) -> str:
    """What the numbers say, for someone who sees them for the first time."""
    reduction = e.reduce()
    alpha, left = float(e.alpha.sum()), len(reduction)
    size = abs(alpha) + abs(e.bias) + abs(e.bypass) + abs(e.remainder) or 1.0
    parts = [f"The output {_signed(e.output, 5)} is made of {_signed(alpha)} that flows from the input through "
             f"{len(e)} spectral {'component' if len(e) == 1 else 'components'} of layer {e.layer}, and "
             f"{_signed(e.bias)} of bias, which is {abs(e.bias) / size:.0%} of all terms by size."]
    if e.settings.get("bypass", e.bypass != 0):
        parts.append(f"Paths round the layer bring {_signed(e.bypass)}.")
    if abs(e.remainder) > 1e-4 * size:
        parts.append(f"The components that were not computed would bring {_signed(e.remainder)}.")
    if left:
        k = int(e.indices[reduction.dominant[0]])
        parts.append(f"After opposite contributions cancel, {left} of {len(e)} {'is' if left == 1 else 'are'} left; "
                     f"the largest is component {k} with {float(reduction.shares[0]):.0%}.")
    return " ".join(parts)


def _certificate(e) -> str:
    """Why the numbers can be believed."""
    parts = [f"The bias was computed in two independent ways, which agree to {e.exactness:.0e} of the output's size",
             f"all terms add up to the output to within {e.completeness:.0e}"]
    if len(e):
        parts.append(f"within {float(e.residuals.max()):.1e} of every λ shown there is a true singular value")
    if e.error is not None:
        parts.append(f"and what the shown components miss of the map to the layer is estimated at {e.error:.1e} "
                     "(Frobenius norm)")
    text = "; ".join(parts) + "."
    if not e.settings.get("svd", {}).get("converged", True):
        text += " The solver stopped BEFORE it reached the tolerance asked for."
    return text


def _signed(value: float, digits: int = 4) -> str:
    """A number with its sign and a true minus; rounding errors with two digits."""
    return f"{value:+.{2 if abs(value) < 1e-3 else digits}g}".replace("-", "−")
