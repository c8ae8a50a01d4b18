"""`specxai explain`: one model, one image, one or more layers."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import torch

import specxai
from specxai._text import printable
from specxai.cli.models import load
from specxai.cli.output import save_settings, staged
from specxai.cli.settings import ExplainSettings


def run(settings: ExplainSettings) -> None:
    """Explain, print the sums, and write pictures, results, settings and the report to `settings.out`."""
    if "list" in settings.layer:
        _, local = _linearize(settings)
        print("\n".join(f"{printable(name):<32} {tuple(local.split(name).shape)}" for name in local.layers))
        return
    with staged(settings.out) as folder:
        _explain(settings, folder)
    print(f"\nreport: {settings.out / 'report.html'}")


def _linearize(settings: ExplainSettings):
    subject = load(settings.model, settings.weights, settings.image, settings.size, settings.seed)
    chosen = {} if settings.output is None else {"output": settings.selector}
    local = specxai.linearize(subject.model, subject.x, gates=settings.gates, backend=settings.backend, **chosen)
    return subject, local


def _explain(settings: ExplainSettings, folder: Path) -> None:
    # Heavy imports only once the arguments are known to be good.
    from specxai.plots.report import Entry, write_report

    subject, local = _linearize(settings)
    layers = [local.split(layer).layer for layer in dict.fromkeys(settings.layer)] or [
        default_layer(local, subject.model)]
    if subject.note:
        print(printable(subject.note))
    print("\n".join(map(printable, local.report().split("\n"))))
    entries = []
    for layer in layers:
        for target in settings.wanted:
            # A layer's first target decomposes it; the Local keeps that for the others.
            e = specxai.explain(local, layer=layer, target=target, rank=settings.triplets, tol=settings.tol,
                                method=settings.method, seed=settings.seed,
                                progress=None if settings.progress else False)
            label = printable(name_of(e.target_label, subject.labels))
            print(f"\n{e.summary()}" + (f"\n  {e.target_label} is {label!r}" if label else ""))
            stem = "layer-" + re.sub(r"[^\w.#-]", "_", layer) + (f"-target-{target}" if settings.targets else "")
            heading = (f"{subject.name}: {e.target_label}" + (f", “{label}”," if label else "")
                       + f" at layer {printable(layer)}")
            picture = folder / f"{stem}.png"
            e.plot(picture, image=subject.image, title=heading)
            e.save(folder / f"{stem}.safetensors")
            entries.append(Entry(e, heading, subject.image, subject.note, picture))
    used = {"layer": layers, "rank": settings.triplets if settings.rank is None else settings.rank}
    stored = save_settings({**asdict(settings), **used}, folder)
    write_report(folder / "report.html", entries, f"Spectral explanation of {subject.name}", settings=stored)


def name_of(target_label: str, labels: tuple[str, ...]) -> str:
    """The class name of "output[7]", where the outputs have names."""
    found = re.fullmatch(r"output\[(\d+)\]", target_label)
    return labels[int(found[1])] if found and int(found[1]) < len(labels) else ""


def default_layer(local, model: torch.nn.Module) -> str:
    """The paper's choice (section 2.1): the end of the last convolutional stage, before pooling to the classifier.

    From the last convolution on: its norm, gate and max-pool, and what adds the skip; a block that merely ends there
    carries the same values under another name.
    """
    names, modules = local.layers, dict(model.named_modules())
    kinds = [modules.get(name.partition("#")[0]) for name in names]
    last = max((i for i, m in enumerate(kinds) if isinstance(m, torch.nn.modules.conv._ConvNd)), default=None)
    if last is None or (len(names) > 12 and last < len(names) // 4):  # a patch embedding is no convolutional stage
        raise ValueError("this model has no convolutional stage at its end, so there is no default layer: pass --layer "
                         "NAME (--layer list shows the names)")
    chosen, conv, axes = names[last], names[last].partition("#")[0], len(local.split(names[last]).shape)
    for name, module in zip(names[last + 1:], kinds[last + 1:], strict=True):
        if type(module).__name__.startswith(_STAGE) and len(local.split(name).shape) == axes:
            chosen = name
        elif not conv.startswith(name.partition("#")[0] + "."):
            break
    return chosen


_STAGE = ("BatchNorm", "FrozenBatchNorm", "GroupNorm", "ReLU", "LeakyReLU", "GELU", "SiLU", "Hardswish", "ELU",
          "MaxPool", "Identity", "Dropout")
