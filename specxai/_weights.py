"""Weights from a file, which is never given a chance to run code."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


def load_weights(net: nn.Module, path: Path) -> None:
    """Load a state dict into `net`: safetensors, or a .pt or .pth file that holds nothing but tensors.

    Raises FileNotFoundError or ValueError, naming the remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}: pass a .safetensors, .pt or .pth file, or DEFAULT")
    if path.suffix == ".safetensors":
        state = _safetensors(path)
    elif path.suffix in (".pt", ".pth"):
        state = _checkpoint(path)
    else:
        raise ValueError(f"weights file {path} must end in .safetensors, .pt or .pth")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict (names with tensors): save model.state_dict()")
    nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")  # of DataParallel
    try:
        missing, unexpected = net.load_state_dict(state, strict=False)
    except RuntimeError as error:  # right names, wrong shapes
        raise ValueError(f"{path} does not fit the model: {str(error).splitlines()[-1].strip()}; was it saved from "
                         "another architecture?") from error
    if missing or unexpected:
        raise ValueError(f"{path} does not fit the model: {len(missing)} weights missing{_such_as(missing)}, "
                         f"{len(unexpected)} unknown{_such_as(unexpected)}; was it saved from another architecture?")


def _safetensors(path: Path) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): copy or save it again") from error


def _checkpoint(path: Path):
    """What torch.load makes of it without running anything that the file names."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols and TorchScript; the errors say enough
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named or "TorchScript" in str(error):
            what = f"a pickled {named[1]}" if named else "a TorchScript program"
            raise ValueError(f"{path} is refused: it holds {what}, and loading that could run code; save only the "
                             "model.state_dict(), best as safetensors") from error
        raise ValueError(f"{path} is not a readable checkpoint of tensors (cut short, or of another format): save "
                         "the model.state_dict() again, best as safetensors") from error
    return state.get("state_dict", state) if isinstance(state, dict) else state


def _such_as(names: list[str]) -> str:
    return f" (such as {', '.join(names[:2])})" if names else ""
