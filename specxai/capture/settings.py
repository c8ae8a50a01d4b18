"""What a model's program depends on beside its weights' values: whether a capture made before still holds.

A snapshot is a mapping from places, such as ("layer1.0", "config", "temperature"), to what is there.  Objects that have
nothing to compare but themselves, functions and hooks say, are there by identity.  No snapshot sees everything, so a
capture that is used again is compared with the model too.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

Snapshot = dict[tuple, Any]
_LIMIT, _DEPTH = 50_000, 8  # entries, and levels of an attribute
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Enum)


def snapshot(model: nn.Module) -> Snapshot:
    """What is there now: modules, their code, hooks and attributes, which tensors they hold, and torch's own modes."""
    found: Snapshot = {}
    device = "cpu"
    found["torch",] = (torch.get_default_dtype(), torch.is_autocast_enabled(device), torch.get_autocast_dtype(device),
                       *map(id, (*global_hooks._global_forward_hooks.values(),
                                 *global_hooks._global_forward_pre_hooks.values())))
    for path, module in model.named_modules(remove_duplicate=False):
        found[path,] = id(module), id(type(module)), id(type(module).forward), id(type(module).__call__)
        for name, value in vars(module).items():
            if name != "_modules":
                _describe(value, (path, name), found, frozenset({id(module)}))
    return found


def changed(before: Snapshot, after: Snapshot) -> frozenset[tuple]:
    """The places that differ; the container's where one of its places came or went."""
    return frozenset(place for place in before.keys() | after.keys()
                     if place not in before or place not in after or before[place] != after[place])


def same(before: Snapshot, after: Snapshot, ignored: frozenset[tuple]) -> bool:
    """Do two snapshots agree, but for the places `ignored` and what is inside of them?"""
    return all(any(place[:size] in ignored for size in range(2, len(place) + 1)) for place in changed(before, after))


def _describe(value: Any, place: tuple, found: Snapshot, around: frozenset[int]) -> None:
    if len(found) > _LIMIT:
        return
    if isinstance(value, _PLAIN):
        found[place] = type(value), repr(value)  # NaN is as it was
    elif isinstance(value, Tensor):
        found[place] = id(value), value.shape, value.dtype, value.device
    elif id(value) in around or len(place) > _DEPTH or isinstance(value, nn.Module):
        found[place] = type(value), id(value)
    elif isinstance(value, Mapping):
        found[place] = type(value), len(value)
        for key, item in list(value.items()):
            _describe(item, (*place, key if isinstance(key, (str, int)) else id(key)), found, around | {id(value)})
    elif isinstance(value, (list, tuple)):
        found[place] = type(value), len(value)
        for key, item in enumerate(list(value)):
            _describe(item, (*place, key), found, around | {id(value)})
    elif isinstance(value, (set, frozenset)):
        found[place] = type(value), tuple(sorted(map(repr, value)))
    elif hasattr(value, "__array_interface__") and getattr(value, "nbytes", _LIMIT * 100) < _LIMIT * 100:
        found[place] = type(value), hashlib.blake2b(value.tobytes()).digest()
    elif dataclasses.is_dataclass(value) or (hasattr(value, "__dict__") and not callable(value)):
        found[place] = type(value), id(type(value))
        for key, item in list(vars(value).items()) if hasattr(value, "__dict__") else ():
            _describe(item, (*place, key), found, around | {id(value)})
    else:
        found[place] = type(value), id(value)
