"""Models and images named on the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from specxai._vision import import_vision
from specxai._weights import load_weights
from specxai.cli.images import Transform, read_image
from specxai.cli.near import near
from specxai.cli.own import from_file

DEFAULT = "DEFAULT"  # the weights that a package itself offers


@dataclass(frozen=True)
class Subject:
    """A model, the input (1, C, h, w) it is given, and that input as people see it."""

    model: nn.Module
    x: Tensor
    image: np.ndarray
    name: str
    note: str = ""
    labels: tuple[str, ...] = ()


def load(model: str, weights: str | None, image: str, size: int | None, seed: int) -> Subject:
    """The model of `--model` with `--weights`, at the input of `--image`.

    Raises ValueError, FileNotFoundError or ImportError, each naming the remedy.
    """
    if model == "digits":
        return _digits(weights, image, size)
    torch.manual_seed(seed)  # random weights are repeatable
    family, _, name = model.rpartition(":")
    own = family.endswith(".py")
    if own and weights == DEFAULT:
        raise ValueError(f"--weights DEFAULT is for torchvision, timm and digits; {family} loads its own, "
                         "or pass a file")
    if own:
        net, transform, labels = from_file(Path(family), name)
    elif family in _PACKAGES:
        net, transform, labels = _PACKAGES[family](name, weights == DEFAULT)
    else:
        raise ValueError(f"--model {model!r} is none of: digits, torchvision:NAME, timm:NAME, FILE.py:FACTORY")
    note = "" if weights or own else ("NOTE: the weights are random, so this explains no trained model; "
                                      "pass --weights FILE or --weights DEFAULT for one")
    if weights and weights != DEFAULT:
        load_weights(net, Path(weights))
    if size is not None:
        transform = replace(transform, size=size, resize=round(transform.resize * size / transform.size))
    pixels = read_image(Path(image), transform)
    return Subject(net.eval(), transform.normalise(pixels), pixels if transform.channels == 3 else pixels[..., 0],
                   model, note, labels)


def _digits(weights: str | None, image: str, size: int | None) -> Subject:
    from specxai.zoo import digits

    if size not in (None, digits.SIZE):
        raise ValueError(f"--size {size}: the digits net takes {digits.SIZE} pixels only; leave --size out")
    net = digits.load_digits_net()
    if weights and weights != DEFAULT:
        load_weights(net, Path(weights))
    if image.lstrip("-").isdigit():
        _, held = digits.digits_data()
        number = int(image)
        if not 0 <= number < len(held.y):
            raise ValueError(f"--image {number}: the held-out digits are 0 to {len(held.y) - 1}")
        return Subject(net, held.x[number : number + 1], held.raw[number, 0].numpy(), "digits",
                       f"held-out image {number}, a {int(held.y[number])}", digits.CLASSES)
    transform = Transform(digits.SIZE, digits.SIZE, (digits.MEAN,), (digits.STD,))
    pixels = read_image(Path(image), transform)
    note = Path(image).name
    if pixels.mean() > 0.5:
        note += ": the net knows light digits on a dark ground, and this image is mostly light; invert it first"
    return Subject(net, transform.normalise(pixels), pixels[..., 0], "digits", note, digits.CLASSES)


def _torchvision(name: str, trained: bool) -> tuple[nn.Module, Transform, tuple[str, ...]]:
    """A classifier of torchvision, how its inputs are made, and the names of its outputs."""
    models = import_vision("torchvision.models")
    known = models.list_models(module=models)  # the classifiers
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}{near(name, known)}")
    net = _fetch(trained, models.get_model, name, weights=DEFAULT if trained else None)
    default = models.get_model_weights(name).DEFAULT
    preset = default.transforms()
    transform = Transform(preset.crop_size[0], preset.resize_size[0], tuple(preset.mean), tuple(preset.std),
                          preset.interpolation.value)
    return net, transform, tuple(default.meta.get("categories", ()))


def _timm(name: str, trained: bool) -> tuple[nn.Module, Transform, tuple[str, ...]]:
    """The same of timm, which does not name the outputs."""
    timm = import_vision("timm")
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{near(name, timm.list_models())}")
    net = _fetch(trained, timm.create_model, name, pretrained=trained)
    config = timm.data.resolve_model_data_config(net)
    size = config["input_size"][-1]
    transform = Transform(size, round(size / config["crop_pct"]), tuple(config["mean"]), tuple(config["std"]),
                          config["interpolation"])
    return net, transform, ()


_PACKAGES = {"torchvision": _torchvision, "timm": _timm}


def _fetch(trained: bool, make, name: str, **options) -> nn.Module:
    """Build a model; a failed download is reported with the way round it."""
    try:
        return make(name, **options)
    except Exception as error:  # each way of downloading has errors of its own
        if not trained:
            raise
        raise ValueError(f"the trained weights of {name} cannot be downloaded ({error}): get the file another way and "
                         "pass --weights FILE") from error
