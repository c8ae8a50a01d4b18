"""One self-contained HTML file for a list of explanations: figures inline, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from specxai._files import replacing
from specxai._text import printable
from specxai.plots import hover
from specxai.plots.explanation import plot_explanation
from specxai.plots.spectrum import signed
from specxai.spectral.summary import agreement_text

__all__ = ["Entry", "write_report"]

_signed = partial(signed, digits=4)


@dataclass(frozen=True)
class Entry:
    """One explanation in a report: its heading, the input as people see it, and a line of context.

    picture   the PNG file that `plot_explanation` wrote of it already; drawn here if left out
    """

    explanation: object
    heading: str
    image: object = None
    note: str = ""
    picture: str | os.PathLike | None = None


def write_report(path: str | os.PathLike, entries: Sequence, title: str, intro: str = "",
                 settings: dict | None = None, *, images: Sequence | None = None, rows: int = 10) -> Path:
    """Write the report and return its path.

    entries    what to show, in order: `Entry`s or plain Explanations
    images     the inputs of plain Explanations as people see them, in the same order
    rows       contributions in each table, the largest first

    All text is escaped; the file is written under a temporary name and renamed.

    Raises ValueError where there are not as many images as explanations.

    >>> import tempfile, torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> e = specxai.explain(net, torch.ones(1, 4), layer="1", rank=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_report(Path(folder) / "report.html", [e], "One input")
    ...     "One input" in path.read_text(), path.name
    (True, 'report.html')
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if images is not None and len(images) != len(entries):
        raise ValueError(f"{len(images)} images for {len(entries)} explanations: give one each, None for none")
    images = images or [None] * len(entries)
    entries = [e if isinstance(e, Entry) else Entry(e, printable(f"{e.target_label} at {e.layer}"), image)
               for e, image in zip(entries, images, strict=True)]
    environment = Environment(loader=PackageLoader("specxai.plots", "."), autoescape=True, undefined=StrictUndefined)
    template = environment.get_template("report.html.j2")
    html = template.render(title=title, intro=intro, settings=settings or {}, signed=_signed, box=hover,
                           items=[_item(entry, rows) for entry in entries])
    with replacing(path) as draft:
        draft.write_text(html, encoding="utf-8")
    return Path(path)


def _item(entry: Entry, rows: int) -> dict:
    e = entry.explanation
    table = sorted(e.table(), key=lambda row: -abs(row["alpha"]))
    biases = sorted(e.bias_contributions.items(), key=lambda item: -abs(item[1]))
    return {
        "e": e, "heading": entry.heading, "note": entry.note,
        "figure": base64.b64encode(_png(entry)).decode(), "spectrum": hover.spectrum(e),
        "around": e.settings.get("bypass", e.bypass != 0),
        "table": table[:rows], "more": len(table) - min(rows, len(table)),
        "biases": biases[:8], "other_biases": sum(value for _, value in biases[8:]), "more_biases": len(biases[8:]),
        "alpha": float(e.alpha.sum()),
        "story": _story(e), "certificate": _certificate(e), "agreement": agreement_text(e.agreement),
        "backends": ", ".join(f"{part} on {name}" for part, name in e.backends.items()) or f"backend {e.backend}",
        "symbolic": e.symbolic(top=5).text(),
    }


def _png(entry: Entry) -> bytes:
    if entry.picture is not None:
        return Path(entry.picture).read_bytes()
    buffer = io.BytesIO()
    plot_explanation(entry.explanation, image=entry.image, title=entry.heading).savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _story(e) -> str:
    """What the numbers say, for someone who sees them for the first time."""
    reduction = e.reduce()
    alpha, left = float(e.alpha.sum()), len(reduction)
    size = abs(alpha) + abs(e.bias) + abs(e.bypass) + abs(e.remainder) or 1.0
    parts = [f"The output {signed(e.output, 5)} is made of {_signed(alpha)} that flows from the input through "
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
    parts = ["The map J was not compared with the model itself" if e.agreement is None else
             "The map J and the model itself, differentiated by torch along random directions, agree to "
             f"{e.agreement:.0e}",
             f"the bias was computed in two independent ways, which agree to {e.exactness:.0e} of the output's size",
             f"all terms add up to the output to within {e.completeness:.0e}"]
    if len(e):
        parts.append(f"within {float(e.residuals.max()):.1e} of every λ shown there is a true singular value "
                     f"({e.worst_residual:.0e} of the largest)")
    if e.error is not None:
        norm = e.solver.get("norm")
        parts.append("what the components miss of the map from the input to the layer is at most about "
                     f"{e.error:.1e}" + (f" of {norm:.4g}" if norm else "") + " (Frobenius norm)")
    text = "; ".join(parts) + "."
    if not e.converged:
        text += " The solver stopped BEFORE it reached the tolerance asked for."
    return text
