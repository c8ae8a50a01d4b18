"""Means over images with 95 % bootstrap intervals, as numbers, tables and a sentence a metric on who is ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from specxai.experiments.compare.methods import CONTROLS
from specxai.experiments.compare.spectral import READINGS
from specxai.experiments.shapes.metrics import bootstrap
from specxai.experiments.study import Study

INTERVAL = "95 % bootstrap interval over images"
# Metric -> is more better?
BETTER = {"pointing": True, "pointing, smoothed": True, "inside": True, "insertion": True, "deletion": False,
          "insertion, places": True, "deletion, places": False}


def tabulate(study: Study, name: str, found: Mapping[str, Mapping[str, Sequence[float]]], first: str, caption: str,
             notes: Mapping[str, str] | None = None) -> dict[str, dict[str, tuple[float, float, float]]]:
    """A table of {row: {metric: values per image}} with a number for every cell; returns (mean, low, high) of each."""
    cells = {row: {metric: bootstrap(values, study.seed) for metric, values in metrics.items()}
             for row, metrics in found.items()}
    for row, metrics in cells.items():
        for metric, (mean, low, high) in metrics.items():
            note = (notes or {}).get(metric, "")
            if np.isnan(mean):
                study.number(f"{name}/{row}/{metric}", None, note=f"no image has a value; {note}")
            else:
                study.number(f"{name}/{row}/{metric}", mean, (low, high), f"{note}; {INTERVAL}" if note else INTERVAL)
    study.table(name, [{first: row, **{metric: shown(cell) for metric, cell in metrics.items()}}
                       for row, metrics in cells.items()], f"{caption}  In brackets: {INTERVAL}.")
    return cells


def shown(cell: tuple[float, float, float]) -> str:
    """A mean with its interval.

    >>> shown((0.5, 0.25, 0.75)), shown((2e-7, 1e-7, 3e-7))
    ('0.500 [0.250, 0.750]', '2e-07 [1e-07, 3e-07]')
    """
    if np.isnan(cell[0]):
        return "not defined"
    small = max(map(abs, cell)) < 1e-3 and any(cell)
    return "{:.2g} [{:.2g}, {:.2g}]".format(*cell) if small else "{:.3f} [{:.3f}, {:.3f}]".format(*cell)


def paired(study: Study, found: Mapping[str, Mapping[str, Sequence[float]]], against: Sequence[str]) -> None:
    """Differences image by image of each of our maps to some rivals."""
    for name in (name for name in found if is_ours(name)):
        for rival in against:
            for metric in BETTER:
                difference = np.subtract(found[name][metric], found[rival][metric])
                mean, low, high = bootstrap(difference.tolist(), study.seed)
                study.number(f"differences/{name} − {rival}/{metric}", mean, (low, high), f"paired; {INTERVAL}")


def standings(found: Mapping[str, Mapping[str, Sequence[float]]], seed: int) -> list[str]:
    """A line a metric: our best map, the best rival, and whether the paired difference is larger than chance.

    The best are picked by the same images, which favours neither side.
    """
    lines = []
    for metric, more in BETTER.items():
        means = {name: float(np.mean(values[metric])) * (1 if more else -1) for name, values in found.items()}
        ours = max((name for name in means if is_ours(name)), key=means.__getitem__)
        rival = max((name for name in means if not is_ours(name) and name not in CONTROLS), key=means.__getitem__)
        difference = np.subtract(found[ours][metric], found[rival][metric]) * (1 if more else -1)
        mean, low, high = bootstrap(difference.tolist(), seed)
        verdict = "SpecXAI is ahead" if low > 0 else "the rival is ahead" if high < 0 else "no difference beyond chance"
        lines.append(f"{metric} ({'more' if more else 'less'} is better): {ours} {np.mean(found[ours][metric]):.3f}, "
                     f"{rival} {np.mean(found[rival][metric]):.3f}; {verdict} ({mean:+.3f} [{low:+.3f}, {high:+.3f}])")
    return lines


def is_ours(name: str) -> bool:
    """Is this method's name one of "reading, layer"?"""
    return any(name.startswith(f"{reading}, ") for reading in READINGS)
