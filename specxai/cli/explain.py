"""`specxai explain`: one model, one image, one or more layers."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import specxai
from specxai.cli.models import load
from specxai.cli.settings import ExplainSettings


def run(settings: ExplainSettings) -> None:
    """Explain, print the sums, and write pictures, results, settings and the report to `settings.out`."""
    subject = load(settings.model, settings.weights, settings.image, settings.size, settings.seed)
    local = specxai.linearize(subject.model, subject.x, gates=settings.gates, backend=settings.backend)
    if "list" in settings.layer:
        print("\n".join(local.layers))
        return
    # Heavy imports only once there is something to draw.
    from specxai.plots.report import Entry, write_report

    layers = [local.split(layer).layer for layer in settings.layer] or [default_layer(local)]
    if subject.note:
        print(subject.note)
    print(local.report())
    settings.out.mkdir(parents=True, exist_ok=True)
    entries = []
    for layer in layers:
        rank = None if settings.rank == "all" else settings.rank
        e = specxai.explain(local, layer=layer, target=settings.target, rank=rank, tol=settings.tol,
                            method=settings.method, seed=settings.seed, progress=settings.progress)
        print(f"\n{e.summary()}")
        stem = "layer-" + re.sub(r"[^\w.#-]", "_", layer)
        heading = f"{subject.name}: {e.target_label} at layer {layer}"
        e.plot(settings.out / f"{stem}.png", image=subject.image, title=heading)
        e.save(settings.out / f"{stem}.safetensors")
        entries.append(Entry(e, heading, subject.image, subject.note))
    stored = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
    stored["specxai"] = specxai.__version__
    (settings.out / "settings.json").write_text(json.dumps(stored, indent=2) + "\n")
    report = write_report(settings.out / "report.html", entries, f"Spectral explanation of {subject.name}",
                          settings=stored)
    print(f"\nreport: {report}")


def default_layer(local) -> str:
    """The last layer whose output still has spatial axes: the paper's choice (section 2.1)."""
    for layer in reversed(local.layers):
        shape = local.split(layer).shape
        if len(shape) == 4 and shape[2] * shape[3] > 1:
            return layer
    return local.layers[max(0, len(local.layers) - 2)]
