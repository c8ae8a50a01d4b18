"""The experiment: train autoencoders without and with biases, take their maps apart, report figures and numbers."""

from __future__ import annotations

from specxai.experiments.squares import figures
from specxai.experiments.squares.analysis import analyse, data_spectrum
from specxai.experiments.squares.data import split
from specxai.experiments.squares.train import Settings, train, trained
from specxai.experiments.study import Study

SUMMARY = "Autoencoders of rotated squares, without and with biases (sections 2.3 and 3.1, figures 8 and 9)."
OPTIONS = ("epochs",)
KINDS = {"without-bias": False, "with-bias": True}


def run(study: Study, **sizes) -> None:
    """Everything about the rotated squares.

    sizes   others of `specxai.experiments.squares.train.Settings` than the epochs and the seed: train, test, size, …
    """
    chosen = settings(study, **sizes)
    squares, test = split(chosen.train, chosen.test, chosen.seed, chosen.size, chosen.side)
    x = test[0]
    nets = {}
    for kind, bias in KINDS.items():
        def fit(bias: bool = bias, kind: str = kind) -> dict:
            with study.progress.bar(chosen.epochs, f"training {kind}", "epoch") as bar:
                return train(squares, test, bias, chosen, bar.update)

        nets[kind] = trained(study.step(f"train-{kind}", fit), bias, chosen)
    data = data_spectrum(squares, x)
    plain, biased = (analyse(net, x) for net in nets.values())
    study.figure("figure8", figures.figure8(data, plain), "Figure 8.")
    study.figure("figure9", figures.figure9(biased), "Figure 9.")


def settings(study: Study, **sizes) -> Settings:
    """Of a quick or the full run."""
    few = {"epochs": 24, "train": 1000, "test": 40} if study.quick else {}
    return Settings(**{"seed": study.seed, **few, **study.options, **sizes})
