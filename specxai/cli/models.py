"""Models and images named on the command line."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Subject:
    """A model, the input (1, C, h, w) it is given, and that input as people see it."""

    model: nn.Module
    x: Tensor
    image: np.ndarray
    name: str
    note: str = ""


def load(model: str, weights: str | None, image: str, size: int, seed: int) -> Subject:
    """The model of `--model` with `--weights`, at the input of `--image`.

    Raises ValueError, FileNotFoundError or ImportError, each naming the remedy.
    """
    if model == "digits":
        return _digits(weights, image)
    torch.manual_seed(seed)  # random weights are repeatable
    net = _module(model, weights)
    note = "" if weights else "weights are random: pass --weights FILE or --weights DEFAULT for a trained model"
    if weights and weights != "DEFAULT":
        load_weights(net, Path(weights))
    net = net.eval()
    parameter = next((p for p in net.parameters() if p.ndim == 4), None)
    channels = 3 if parameter is None or parameter.shape[1] == 3 else 1
    pixels = read_image(Path(image), size, channels)
    x = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    if channels == 3:
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in IMAGENET)
        x = (x - mean) / std
    return Subject(net, x, pixels if channels == 3 else pixels[..., 0], model, note)


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
    missing, unexpected = net.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(f"{path} does not fit the model: {len(missing)} weights missing (such as {missing[:2]}), "
                         f"{len(unexpected)} unknown (such as {unexpected[:2]})")


def read_image(path: Path, size: int, channels: int) -> np.ndarray:
    """An image file as (size, size, channels) float32 in [0, 1]: shorter side resized, centre cropped."""
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise FileNotFoundError(f"no image file {path}; pass --image FILE.png")
    try:
        picture = Image.open(path).convert("RGB" if channels == 3 else "L")
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image that Pillow can read; convert it to PNG or JPEG") from error
    scale = size / min(picture.size)
    picture = picture.resize([max(size, round(side * scale)) for side in picture.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in picture.size)
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    return pixels.reshape(size, size, channels)


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
                       f"held-out image {number}, a {int(held.y[number])}")
    raw = torch.from_numpy(read_image(Path(image), digits.SIZE, 1)).permute(2, 0, 1).unsqueeze(0)
    return Subject(net, (raw - digits.MEAN) / digits.STD, raw[0, 0].numpy(), "digits", Path(image).name)


def _module(model: str, weights: str | None) -> nn.Module:
    from specxai._vision import import_vision

    family, _, name = model.rpartition(":")
    if family == "torchvision":
        models = import_vision("torchvision.models")
        if name not in models.list_models():
            raise ValueError(f"torchvision has no model {name!r}{_near(name, models.list_models())}")
        return models.get_model(name, weights="DEFAULT" if weights == "DEFAULT" else None)
    if family == "timm":
        timm = import_vision("timm")
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}{_near(name, timm.list_models())}")
        return timm.create_model(name, pretrained=weights == "DEFAULT")
    if family.endswith(".py"):
        return _from_file(Path(family), name)
    raise ValueError(f"--model {model!r} is none of digits, torchvision:NAME, timm:NAME, FILE.py:FACTORY")


def _from_file(path: Path, factory: str) -> nn.Module:
    """Run the user's own file and call its factory."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; --model FILE.py:FACTORY runs a file of yours")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    if not callable(make := getattr(module, factory, None)):
        raise ValueError(f"{path} defines no function {factory!r} that returns the model")
    net = make()
    if not isinstance(net, nn.Module):
        raise ValueError(f"{path}:{factory} returned {type(net).__name__}, not a torch.nn.Module")
    return net


def _near(name: str, names) -> str:
    import difflib

    close = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""
