"""The main job: explain held-out handwritten digits at the last convolutional and the penultimate layer.

Examples:
    python examples/explain_digits.py --out demo
    python examples/explain_digits.py --out demo --digits 8 --rank 30
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro
from tqdm.auto import tqdm

import specxai
from specxai.cli.output import save_settings, staged
from specxai.cli.stop import stoppable
from specxai.plots.report import Entry, write_report
from specxai.spectral.summary import agreement_text
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
    rank: int | Literal["all"] = "all"
    """singular triplets per explanation"""
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
    with staged(settings.out) as folder:
        explain_all(settings, folder)
    report = settings.out / "report.html"
    print(f"report: {report}")
    return report


def explain_all(settings: Settings, folder: Path) -> None:
    """Explain at both layers, and write everything to `folder`."""
    net = load_digits_net()
    _, held = digits_data()
    predicted = net(held.x).argmax(1)
    captured = specxai.capture(net, held.x[:1])  # once; every image then costs one forward pass
    entries = []
    for i in tqdm(choose(held, predicted, settings.digits), desc="explaining", unit="image", disable=None):
        local = captured.linearize(held.x[i : i + 1])
        truth, guess, image = int(held.y[i]), int(predicted[i]), held.raw[i, 0].numpy()
        for layer, place in ((LAST_CONV_LAYER, "last conv"), (PENULTIMATE_LAYER, "penultimate")):
            e = specxai.explain(local, layer=layer, rank=None if settings.rank == "all" else settings.rank,
                                seed=settings.seed)
            heading = f"A {truth} read as {guess}: {place} layer {layer}"
            picture = folder / f"image{i:03d}-{place.replace(' ', '-')}.png"
            e.plot(picture, image=image, title=heading)
            e.save(picture.with_suffix(".safetensors"))
            note = f"Held-out image {i}; {e.target_label} is the logit of class {guess}."
            entries.append(Entry(e, heading, image, note, picture))
            tqdm.write(f"image {i:3d}  {truth} read as {guess}  {layer:12s} logit {e.output:8.4f} = "
                       f"Σα {float(e.alpha.sum()):+.4f}  bias {e.bias:+.4f}  remainder {e.remainder:+.1e}  "
                       f"({agreement_text(e.agreement, 0)}, exactness {e.exactness:.0e}, {len(e)} components)")
    stored = save_settings({**asdict(settings), "layers": [LAST_CONV_LAYER, PENULTIMATE_LAYER]}, folder)
    write_report(
        folder / "report.html", entries, "Handwritten digits, taken apart",
        f"A small VGG-style net ({accuracy(net, held):.1%} correct on {len(held.y)} held-out images) decides what "
        "digit it sees. Each panel takes one decision apart into spectral contributions of the network's own map.",
        stored)


if __name__ == "__main__":
    with stoppable("explain_digits"):
        main(tyro.cli(Settings, description=__doc__))
