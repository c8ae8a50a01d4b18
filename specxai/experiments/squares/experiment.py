"""The experiment: train autoencoders without and with biases, take their maps apart, report figures and numbers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from specxai.experiments.squares import figures
from specxai.experiments.squares.analysis import Analysis, Closed, Spectrum, analyse, data_spectrum
from specxai.experiments.squares.data import split
from specxai.experiments.squares.measures import Zones, of_image
from specxai.experiments.squares.model import SquaresNet
from specxai.experiments.squares.report import report
from specxai.experiments.squares.train import Settings, train, trained
from specxai.experiments.study import Study

SUMMARY = "Autoencoders of rotated squares, without and with biases (sections 2.3 and 3.1, figures 8 and 9)."
OPTIONS = ("epochs",)
# Biases, and how fast they learn.  Adam moves each weight as fast as each bias, so that the many weights of a layer
# outrun its bias; the paper holds that biases are easier to train, which is so where they learn faster.
FAST = 10.0
KINDS = {"without-bias": (False, 1.0), "with-bias": (True, 1.0), "fast-bias": (True, FAST)}
SEEDS = 3  # trainings of each kind in the full run: one training shows one of several solutions
TRAININGS, OTHER_SEEDS = 5, 1000  # begun at most where the bottleneck dies, and what their seeds differ by
IMAGES = 100  # test images that the numbers are taken over


def run(study: Study, **sizes) -> None:
    """Everything about the rotated squares.

    sizes   others of `specxai.experiments.squares.train.Settings` than the epochs and the seed: train, test, size, …
    """
    chosen, seeds = settings(study, **sizes), 1 if study.quick else SEEDS
    squares, test = split(chosen.train, chosen.test, chosen.seed, chosen.size, chosen.side)
    data, found = data_spectrum(squares.double(), test[0].double()), {}
    study.expect(2 * len(KINDS) * seeds)
    for seed in range(seeds):
        for kind in KINDS:
            net, result, again = _fitted(study, kind, squares, test, replace(chosen, seed=chosen.seed + seed))
            measured = study.step(f"measure-{kind}-{seed}", _measure, net, test[:IMAGES].double(), data, chosen,
                                  version="float64, closed left out")
            found[kind, seed] = {**measured, "losses": result["losses"], "test_loss": result["test_loss"],
                                 "variance": result["variance"], "again": again}
            if seed == 0:
                found[kind, "example"] = _first_open(net, test.double())
    plain, biased, fast = (found.pop((kind, "example")) for kind in KINDS)
    for kind in KINDS:
        shut = sum(int(found[kind, seed]["closed"]) for seed in range(seeds))
        again = sum(found[kind, seed]["again"] for seed in range(seeds))
        study.number(f"{kind}/trained_again", again, note="trainings that ended with one output for every image, all "
                     "gates of a layer being closed, and were begun anew from other weights")
        study.number(f"{kind}/closed", shut, note=f"of {seeds * len(test[:IMAGES])} images, those at which all "
                     "gates of a layer are closed and biases alone make the output; the other numbers leave them out")
    report(study, chosen, data, plain, {"with-bias": biased, "fast-bias": fast}, found)
    study.figure("figure8", figures.figure8(data, plain), figures.CAPTION8)
    study.figure("figure9", figures.figure9(biased), figures.CAPTION9)
    study.figure("figure9-fast-bias", figures.figure9(fast, f", learning {FAST:g} times as fast"),
                 f"The same where biases learn {FAST:g} times as fast as weights.")


def settings(study: Study, **sizes) -> Settings:
    """Of a quick or the full run; the quick one has images of half the side, and is trained as long."""
    small = {"size": 32, "side": 16, "train": 1000, "test": 40, "batch": 50} if study.quick else {}
    return Settings(**{"seed": study.seed, **small, **study.options, **sizes})


def _fitted(study: Study, kind: str, squares: Tensor, test: Tensor,
            chosen: Settings) -> tuple[SquaresNet, dict, int]:
    """A trained net, what training told, and how often it was begun anew, because nothing of any image came through."""
    bias, rate = KINDS[kind]
    name = f"train-{kind}-{chosen.seed - study.seed}"
    for again in range(TRAININGS):
        own = replace(chosen, bias_rate=rate, seed=chosen.seed + OTHER_SEEDS * again)

        def fit(own: Settings = own) -> dict:
            with study.progress.bar(own.epochs, f"training {kind}", "epoch") as bar:
                return train(squares, test, bias, own, bar.update)

        result = study.step(f"{name}-again-{again}" if again else name, fit, version=repr(own))
        # In float64: at images where few units of the bottleneck are open, float32 holds J to four digits only.
        net = trained(result, bias, own).double()
        with torch.no_grad():
            outputs = net(test[:IMAGES].double())
            if bool((outputs != outputs[:1]).any()):  # else nothing of the image comes through
                break
    return net, result, again


def _measure(net: SquaresNet, images: Tensor, data: Spectrum, chosen: Settings) -> dict:
    """{name of a measure: (images,) its values}."""
    zones = Zones.of(chosen.size, chosen.side)
    rows = []
    for x in images:
        with suppress(Closed):
            rows.append(of_image(analyse(net, x), zones, data))
    if not rows:
        analyse(net, images[0])  # says what is wrong
    measured = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
    return {**measured, "closed": len(images) - len(rows)}


def _first_open(net: SquaresNet, images: Tensor) -> Analysis:
    """The first image at which J is not zero."""
    for x in images[:-1]:
        with suppress(Closed):
            return analyse(net, x)
    return analyse(net, images[-1])
