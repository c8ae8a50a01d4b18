"""From nothing to figures 8 and 9: generate, train twice, analyse, draw."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from specxai._files import replacing
from specxai.experiments.squares import figures
from specxai.experiments.squares.analysis import Analysis, Spectrum, analyse, data_spectrum
from specxai.experiments.squares.data import split
from specxai.experiments.squares.train import LEARNING_RATE, WEIGHT_DECAY, Settings, Trained, load, save, train


def reproduce_squares(out: str | os.PathLike, epochs: int = 60, seed: int = 0, images: int = 2000,
                      progress: bool | None = None, *, sample: int = 0, reuse: bool = False, **settings) -> dict:
    """Train the autoencoders without and with biases and draw the paper's figures 8 and 9.

    Args:
        out: folder for the files, made if missing.
        epochs: of each training.
        seed: of data, weights and order.
        images: how many to train on.
        progress: True or False forces the bar; None shows it on terminals.
        sample: which test image is explained.
        reuse: take the checkpoints of an earlier run with the same settings instead of training again.
        settings: others of `specxai.experiments.squares.train.Settings`: test, batch, size, side, widths.

    Returns:
        Paths under "figure8", "figure9", "numbers", "without_bias", "with_bias", and the matplotlib figures as a
        dict under "figures".
    """
    chosen = Settings(epochs=epochs, seed=seed, train=images, **settings)
    if not 0 <= sample < chosen.test:
        raise ValueError(f"sample {sample} is not one of the {chosen.test} test images")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    squares, test = split(chosen.train, chosen.test, chosen.seed, chosen.size, chosen.side)
    x = test[sample]
    paths = {"without_bias": out / "without_bias.safetensors", "with_bias": out / "with_bias.safetensors"}
    trained: dict[str, Trained] = {}
    with tqdm(total=2 * chosen.epochs, unit="epoch", disable=None if progress is None else not progress) as bar:
        for name, path in paths.items():
            bar.set_description(f"training {name.replace('_', ' ')}")
            found = load(path, name == "with_bias", chosen) if reuse else None
            trained[name] = found or train(squares, test, name == "with_bias", chosen, bar.update)
            if found:
                bar.update(chosen.epochs)
            else:
                save(trained[name], chosen, path)
    data = data_spectrum(squares, x)
    plain, biased = (analyse(trained[name].net, x) for name in paths)
    drawn = {"figure8": figures.figure8(data, plain), "figure9": figures.figure9(biased)}
    for name, figure in drawn.items():
        paths[name] = out / f"{name}.png"
        with replacing(paths[name]) as draft:
            figure.savefig(draft, dpi=180)
    paths["numbers"] = out / "squares.json"
    numbers = {
        "settings": {**asdict(chosen), "sample": sample, "learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY,
                     "torch": str(torch.__version__), "threads": torch.get_num_threads()},
        "data": _of_spectrum(data, 64),
        "without_bias": {**_of_training(trained["without_bias"]), **_of_analysis(plain, data)},
        "with_bias": {**_of_training(trained["with_bias"]), **_of_analysis(biased, data)},
    }
    with replacing(paths["numbers"]) as draft:
        draft.write_text(json.dumps(numbers, indent=1) + "\n")
    return {**paths, "figures": drawn}


def _of_training(trained: Trained) -> dict:
    return {"loss": trained.losses, "test_loss": trained.test_loss}


def _of_spectrum(spectrum: Spectrum, top: int) -> dict:
    return {"norm": spectrum.norm, "error": spectrum.error, "rank": len(spectrum.values),
            "lambda": spectrum.values[:top].tolist()}


def _share(part: Tensor, a: Analysis) -> float:
    """part · f(x) / ‖f(x)‖² of images (h, w): signed, and over J x and all β_l it sums to 1."""
    return ((part * a.output).sum() / (a.output**2).sum().clamp(min=1e-30)).item()


def _cosine(one: Tensor, other: Tensor) -> float:
    """Of two images (h, w)."""
    return torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()


def _of_analysis(a: Analysis, data: Spectrum) -> dict:
    return {
        "operator": {**_of_spectrum(a.spectrum, 64), "c": a.spectrum.coefficients.tolist(),
                     "energy_shares": a.spectrum.shares.tolist()},
        "exactness": a.exactness,
        "norms": {"x": a.x.norm().item(), "f(x)": a.output.norm().item(), "J x": a.linear.norm().item(),
                  "b": a.bias.norm().item()},
        "bias_norms": {name: part.norm().item() for name, part in a.layers.items()},
        "output_shares": {"J x": _share(a.linear, a), **{name: _share(part, a) for name, part in a.layers.items()}},
        "cosine_of_bias_and_data_phi_0": {name: _cosine(part, data.right[0]) for name, part in a.layers.items()},
        "relative_error": ((a.output - a.x).norm() / a.x.norm()).item(),
    }
