"""Results of steps on disk: one safetensors file each, tensors and a JSON header; whole or not there; no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from specxai._files import replacing

__all__ = ["digest", "read_step", "rounded", "write_step"]

_HEADER, _LEAF = "specxai.step", "$array"
_KINDS = (torch.Tensor, np.ndarray)


def digest(key: object) -> str:
    """Twelve hexadecimal digits for what JSON can hold.

    >>> digest({"seed": 0}) == digest({"seed": 0}), digest({"seed": 1}) == digest({"seed": 0})
    (True, False)
    """
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def write_step(path: Path, result: Mapping) -> None:
    """Write a dict of tensors, arrays, numbers, strings, lists and such dicts.  Raises TypeError for anything else."""
    from safetensors.torch import save as to_bytes

    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_taken_apart(result, tensors, path.name), ensure_ascii=False)
    with replacing(path) as draft:
        draft.write_bytes(to_bytes(tensors, metadata={_HEADER: text}))


def read_step(path: Path) -> dict | None:
    """What `write_step` wrote; None where there is no such file, or none that is whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()  # not mapped: the file may be replaced while its tensors are in use
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        return _put_together(json.loads(json.loads(data[8:8 + size])["__metadata__"][_HEADER]), tensors)
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


def rounded(value: object, digits: int) -> object:
    """Numbers in lists and dicts to so many significant digits; tensors and arrays as lists.

    >>> rounded({"a": np.array([1 / 3, 2.0]), "b": None, "n": 7}, 3)
    {'a': [0.333, 2.0], 'b': None, 'n': 7}
    """
    if isinstance(value, _KINDS):
        return rounded(value.tolist(), digits)
    if isinstance(value, np.generic):
        return rounded(value.item(), digits)
    if isinstance(value, float):
        return float(f"{value:.{digits - 1}e}")
    if isinstance(value, Mapping):
        return {str(key): rounded(one, digits) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one, digits) for one in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{type(value).__name__} is no number, text, list or array")


def _taken_apart(value: object, tensors: dict[str, torch.Tensor], where: str) -> object:
    """The value as JSON can hold it, its arrays moved to `tensors`."""
    if isinstance(value, _KINDS):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        tensor = value if kind == "tensor" else torch.from_numpy(np.ascontiguousarray(value))
        name = str(len(tensors))
        tensors[name] = tensor.detach().cpu().contiguous().clone()  # no memory in common, which the format refuses
        return {_LEAF: name, "kind": kind}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{where}: a dict that is kept needs strings as keys, got {list(value)[:3]}")
        return {key: _taken_apart(one, tensors, f"{where}/{key}") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_taken_apart(one, tensors, f"{where}/{i}") for i, one in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where} is {type(value).__name__}; a step can keep tensors, arrays, numbers, strings, lists and "
                    "dicts of these")


def _put_together(value: object, tensors: dict[str, torch.Tensor]) -> object:
    if isinstance(value, dict):
        if _LEAF in value:
            tensor = tensors[value[_LEAF]]
            return tensor if value["kind"] == "tensor" else tensor.numpy()
        return {key: _put_together(one, tensors) for key, one in value.items()}
    if isinstance(value, list):
        return [_put_together(one, tensors) for one in value]
    return value
