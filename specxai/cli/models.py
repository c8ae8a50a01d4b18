"""Models and images named on the command line."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from specxai.cli.images import IMAGENET_MEAN, IMAGENET_STD, Transform, read_image


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
        return _digits(weights, image)
    torch.manual_seed(seed)  # random weights are repeatable
    net, transform, labels = _module(model, weights)
    own = model.rpartition(":")[0].endswith(".py")
    note = "" if weights or own else ("NOTE: the weights are random, so this explains no trained model; "
                                      "pass --weights FILE or --weights DEFAULT for one")
    if weights and weights != "DEFAULT":
        load_weights(net, Path(weights))
    if size is not None:
        transform = replace(transform, size=size, resize=round(transform.resize * size / transform.size))
    pixels = read_image(Path(image), transform)
    return Subject(net.eval(), transform.normalise(pixels), pixels if transform.channels == 3 else pixels[..., 0],
                   model, note, labels)


def load_weights(net: nn.Module, path: Path) -> None:
    """Load a state dict from safetensors, or from a .pt file without unpickling anything but tensors."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}; pass a .safetensors, .pt or .pth file, or DEFAULT")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    elif path.suffix in (".pt", ".pth"):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} does not load with weights_only=True ({str(error).splitlines()[0][:120]}); a "
                             "pickled module can run code: save its state_dict() as safetensors instead") from error
        state = state.get("state_dict", state) if isinstance(state, dict) else state
    else:
        raise ValueError(f"weights file {path} must end in .safetensors, .pt or .pth")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict (names with tensors): save model.state_dict()")
    try:
        missing, unexpected = net.load_state_dict(state, strict=False)
    except RuntimeError as error:  # right names, wrong shapes
        raise ValueError(f"{path} does not fit the model: {str(error).splitlines()[-1].strip()}; was it saved from "
                         "another architecture?") from error
    if missing or unexpected:
        raise ValueError(f"{path} does not fit the model: {len(missing)} weights missing (such as {missing[:2]}), "
                         f"{len(unexpected)} unknown (such as {unexpected[:2]}); was it saved from another "
                         "architecture?")


def _digits(weights: str | None, image: str) -> Subject:
    from specxai.zoo import digits

    net = digits.load_digits_net()
    if weights and weights != "DEFAULT":
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
    return Subject(net, transform.normalise(pixels), pixels[..., 0], "digits", Path(image).name, digits.CLASSES)


def _module(model: str, weights: str | None) -> tuple[nn.Module, Transform, tuple[str, ...]]:
    """The module, how its inputs are made, and the names of its outputs where they are known."""
    from specxai._vision import import_vision

    family, _, name = model.rpartition(":")
    if family == "torchvision":
        models = import_vision("torchvision.models")
        known = models.list_models(module=models)  # the classifiers
        if name not in known:
            raise ValueError(f"torchvision has no classifier {name!r}{_near(name, known)}")
        net = _fetch(models.get_model, name, weights="DEFAULT" if weights == "DEFAULT" else None)
        trained = models.get_model_weights(name).DEFAULT
        preset = trained.transforms()
        transform = Transform(preset.crop_size[0], preset.resize_size[0], tuple(preset.mean), tuple(preset.std),
                              preset.interpolation.value)
        return net, transform, tuple(trained.meta.get("categories", ()))
    if family == "timm":
        timm = import_vision("timm")
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}{_near(name, timm.list_models())}")
        net = _fetch(timm.create_model, name, pretrained=weights == "DEFAULT")
        config = timm.data.resolve_model_data_config(net)
        size = config["input_size"][-1]
        return net, Transform(size, round(size / config["crop_pct"]), tuple(config["mean"]), tuple(config["std"]),
                              config["interpolation"]), ()
    if family.endswith(".py"):
        return _from_file(Path(family), name)
    raise ValueError(f"--model {model!r} is none of: digits, torchvision:NAME, timm:NAME, FILE.py:FACTORY")


def _fetch(make, name: str, **options) -> nn.Module:
    """Build a model; a failed download is reported with the way round it."""
    from urllib.error import URLError

    try:
        return make(name, **options)
    except (URLError, OSError) as error:
        raise ValueError(f"the trained weights of {name} cannot be downloaded ({error}): get the file another way and "
                         "pass --weights FILE") from error


def _from_file(path: Path, factory: str) -> tuple[nn.Module, Transform, tuple[str, ...]]:
    """Run the user's own file, which may do anything that Python can, and call its factory.

    The factory returns the module, or (module, {"size", "mean", "std", "labels"}) with any of these keys.  Without
    them: 224 pixels, channels as the first convolution reads, ImageNet's normalisation for three, none otherwise.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: --model FILE.py:FACTORY runs a file of yours")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    if not callable(make := getattr(module, factory, None)):
        raise ValueError(f"{path} defines no function {factory!r} that returns the model")
    net = make()
    net, options = net if isinstance(net, tuple) and len(net) == 2 else (net, {})
    if not isinstance(net, nn.Module) or not isinstance(options, dict):
        raise ValueError(f"{path}:{factory} returned {type(net).__name__}, not a torch.nn.Module or (module, dict)")
    first = next((p for p in net.parameters() if p.ndim == 4), None)
    channels = 3 if first is None else first.shape[1]
    plain = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,) * channels, (1.0,) * channels)
    mean, std = (tuple(np.atleast_1d(options.get(key, value)).tolist())
                 for key, value in zip(("mean", "std"), plain, strict=True))
    if len(mean) not in (1, 3) or len(mean) != len(std):
        raise ValueError(f"{path}:{factory} wants {len(mean)} channels; image files give 1 or 3: explain it from "
                         "Python with specxai.explain")
    size = int(options.get("size", 224))
    return net, Transform(size, size, mean, std), tuple(map(str, options.get("labels", ())))


def _near(name: str, names) -> str:
    import difflib

    close = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""
