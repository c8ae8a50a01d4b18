"""The checkpoints that ship with the library: safetensors, with what a net was trained on in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def header(path: Path) -> dict:
    """What a checkpoint says of itself."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("specxai", "{}"))


def loaded(net: Net, path: Path, expected: Mapping[str, object]) -> Net:
    """`net` in eval mode with the weights of a checkpoint; ValueError unless its header says what is `expected`."""
    from safetensors.torch import load_file

    info = header(path)
    for name, own in expected.items():
        if info.get(name) != own:
            raise ValueError(f"{path.name} was trained with {name} {info.get(name)!r}; this version expects {own!r}: "
                             "use the checkpoint that ships with it, or train again")
    net.load_state_dict(load_file(path))
    return net.eval()
