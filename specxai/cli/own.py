"""`--model FILE.py:FACTORY`: a model made by the user's own code."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path

import numpy as np
from torch import nn

from specxai.cli.images import IMAGENET_MEAN, IMAGENET_STD, Transform
from specxai.cli.near import near

OPTIONS = ("size", "mean", "std", "labels")


def from_file(path: Path, factory: str) -> tuple[nn.Module, Transform, tuple[str, ...]]:
    """Run the file, which may do anything that Python can, and call its factory.

    The factory returns the module, or (module, {"size", "mean", "std", "labels"}) with any of these keys.  Without
    them: 224 pixels, channels as the first convolution reads, ImageNet's normalisation for three, none otherwise.
    """
    made = run_factory(path, factory)
    net, options = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    where = f"{path}:{factory}"
    if not isinstance(net, nn.Module) or not isinstance(options, dict):
        raise ValueError(f"{where} returned {type(made).__name__}, not a torch.nn.Module or (module, dict)")
    unknown = [key for key in options if key not in OPTIONS]
    if unknown:
        raise ValueError(f"{where} returned the option {unknown[0]!r}{near(str(unknown[0]), OPTIONS)}; the options "
                         f"are {', '.join(OPTIONS)}")
    first = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    plain = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,) * channels, (1.0,) * channels)
    try:
        mean, std = (tuple(np.atleast_1d(np.asarray(options.get(key, value), dtype=float)).tolist())
                     for key, value in zip(("mean", "std"), plain, strict=True))
        size = int(options.get("size", Transform.size))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: size must be an integer, mean and std one number per channel: {error}") from error
    if len(mean) != len(std) or not all(std):
        raise ValueError(f"{where}: mean {mean} and std {std} must be one number per channel each, and no std zero")
    if len(mean) not in (1, 3):
        raise ValueError(f"{where} wants {len(mean)} channels; image files give 1 or 3: explain it from Python with "
                         "specxai.explain")
    return net, Transform(size, size, mean, std), tuple(map(str, options.get("labels", ())))


def run_factory(path: Path, factory: str):
    """What the factory returns; an error of the user's code is told with its line."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: --model FILE.py:FACTORY runs a file of yours")
    name = f"specxai_model_{path.stem}"  # a name of its own: random.py is not to replace Python's random
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # the file may import its neighbours
    try:
        spec.loader.exec_module(module)
        make = getattr(module, factory, None)
        return make() if callable(make) else _no_factory(path, factory, module)
    except (Exception, SystemExit) as error:
        if isinstance(error, _NoFactory):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == spec.origin]
        place = f", line {lines[-1]}" if lines else ""
        raise ValueError(f"{path}{place} fails with {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))


class _NoFactory(ValueError):
    """The file runs, but holds no such function."""


def _no_factory(path: Path, factory: str, module):
    own = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    raise _NoFactory(f"{path} defines no function {factory!r} that returns the model{near(factory, own)}")
