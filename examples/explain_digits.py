"""The main job: explain held-out handwritten digits at the last convolutional and the penultimate layer.

Examples:
    python examples/explain_digits.py --out demo
    python examples/explain_digits.py --out demo --digits 8 --rank 30
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro
from tqdm.auto import tqdm

import specxai
from specxai.plots.report import Entry, write_report
from specxai.zoo.digits import (
    LAST_CONV_LAYER,
    PENULTIMATE_LAYER,
    Digits,
    accuracy,
    digits_data,
    load_digits_net,
)


@dataclass
class Settings:
    """Explain held-out digits and write pictures, results and one HTML report."""

    out: Path = Path("demo")
    """folder for the pictures, results and report.html"""
    digits: int = 4
    """how many images, of different digits; one the net gets wrong is added if there is any"""
    rank: int | Literal["all", "none"] = "none"
    """singular triplets per explanation; all of them by default ("none": no limit)"""
    seed: int = 0
    """of the solver's probes"""


def choose(data: Digits, predicted, count: int) -> list[int]:
    """The first correct image of each of `count` digits, and the first wrong one."""
    chosen, wrong = {}, []
    for i, (truth, guess) in enumerate(zip(data.y.tolist(), predicted.tolist(), strict=True)):
        if truth != guess:
            wrong.append(i)
        elif len(chosen) < count:
            chosen.setdefault(truth, i)
    return [*chosen.values(), *wrong[:1]]


def main(settings: Settings) -> Path:
    net = load_digits_net()
    _, held = digits_data()
    predicted = net(held.x).argmax(1)
    captured = specxai.capture(net, held.x[:1])
    settings.out.mkdir(parents=True, exist_ok=True)
    entries, rank = [], None if settings.rank in ("all", "none") else settings.rank
    for i in tqdm(choose(held, predicted, settings.digits), desc="explaining", unit="image", disable=None):
        local = captured.linearize(held.x[i : i + 1])
        truth, image = int(held.y[i]), held.raw[i, 0].numpy()
        for layer, place in ((LAST_CONV_LAYER, "last conv"), (PENULTIMATE_LAYER, "penultimate")):
            e = specxai.explain(local, layer=layer, rank=rank, seed=settings.seed)
            name = f"image{i:03d}-{place.replace(' ', '-')}"
            heading = f"A {truth} read as {int(predicted[i])}: {place} layer {layer}"
            figure = e.plot(settings.out / f"{name}.png", image=image, title=heading)
            e.save(settings.out / f"{name}.safetensors")
            entries.append(Entry(e, heading, image, f"held-out image {i}; logit of class {int(predicted[i])}", figure))
            tqdm.write(f"image {i:3d}  {truth} read as {int(predicted[i])}  {layer:12s} logit {e.output:8.4f} = "
                       f"Σα {float(e.alpha.sum()):+.4f}  bias {e.bias:+.4f}  remainder {e.remainder:+.1e}  "
                       f"(exactness {e.exactness:.0e}, {len(e)} components)")
    stored = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
    stored |= {"specxai": specxai.__version__, "layers": [LAST_CONV_LAYER, PENULTIMATE_LAYER]}
    (settings.out / "settings.json").write_text(json.dumps(stored, indent=2) + "\n")
    report = write_report(
        settings.out / "report.html", entries, "Handwritten digits, taken apart",
        f"A small VGG-style net ({accuracy(net, held):.1%} correct on {len(held.y)} held-out images) decides what "
        "digit it sees. Each panel takes one decision apart into spectral contributions of the network's own map.",
        stored)
    print(f"report: {report}")
    return report


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
