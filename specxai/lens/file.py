"""Files of a lens, in the reference's form: tensors and plain values only, read with `weights_only`, then checked.

A lens is {"J": {layer: (d, d) float16}, "n_prompts", "source_layers", "d_model", "metadata"}; a checkpoint of a fit is
{"jacobian_sum": {layer: (d, d) float32}, "n_done", "next_idx", "source_layers", "target_layer", "skip_first",
"metadata"}.  Factors of a low rank are added under "factors", which other readers pass over.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from specxai._files import replacing
from specxai.errors import FileError
from specxai.lens.factors import LowRank

PLAIN = (bool, int, float, str, type(None))
FACTORS = ("U", "S", "V", "residuals")


@dataclass
class State:
    """A fit so far: sums over prompts, {layer: (d, d)}; how many prompts are in them; the next prompt's number."""

    sums: dict[int, Tensor]
    n_done: int
    next_idx: int
    target_layer: int
    skip_first: int
    metadata: dict


def write(path: str | os.PathLike, J: Mapping[int, Tensor], n_prompts: int, d_model: int, metadata: Mapping,
          factors: Mapping[int, LowRank], dtype: torch.dtype) -> None:
    """See `Lens.save`."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype is {dtype!r}: give one of real numbers, as torch.float16 or torch.float32")
    content = {"J": {}, "n_prompts": n_prompts, "source_layers": sorted(J), "d_model": d_model,
               "metadata": dict(metadata)}
    for layer in sorted(J):
        stored = J[layer].to(dtype)
        if not torch.isfinite(stored).all():
            raise ValueError(f"J of layer {layer} does not fit into {dtype}: save(path, dtype=torch.float32)")
        content["J"][layer] = stored
    if factors:
        content["factors"] = {layer: {**{name: getattr(part, name) for name in FACTORS}, "scale": part.scale,
                                      "error": part.error} for layer, part in factors.items()}
    _save(content, path)


def read(path: str | os.PathLike) -> tuple[dict[int, Tensor], int, dict, dict[int, LowRank]]:
    """(J in float32, n_prompts, metadata, factors) of a lens, or of a checkpoint as the lens that it makes so far."""
    content = _read(path)
    if "jacobian_sum" in content and "J" not in content:
        state = _state(content, path)
        _require(state.n_done > 0, path, "is a checkpoint without a prompt yet: let the fit go on")
        return {layer: (s / state.n_done).float() for layer, s in state.sums.items()}, state.n_done, state.metadata, {}
    _require("J" in content, path, "holds neither J, a lens, nor jacobian_sum, a checkpoint")
    J = _matrices(content["J"], "J", path)
    width = next(iter(J.values())).shape[0]
    _require(content.get("d_model") == width, path, f"says d_model {content.get('d_model')!r}, and J is {width} wide")
    count = content.get("n_prompts")
    _require(type(count) is int and count >= 0, path, f"says n_prompts {count!r}, which is no count")
    layers = content.get("source_layers", sorted(J))
    _require(isinstance(layers, (list, tuple)) and sorted(layers) == sorted(J), path,
             f"says source_layers {layers!r}, and J has {sorted(J)}")
    factors = {layer: _factors(part, layer, width, path) for layer, part in content.get("factors", {}).items()}
    _require(not factors or sorted(factors) == sorted(J), path, "has factors of other layers than J")
    return {layer: matrix.float() for layer, matrix in J.items()}, count, _plain(content.get("metadata") or {},
                                                                                 path), factors


def write_state(state: State, path: str | os.PathLike) -> None:
    """Write a checkpoint, whole or not at all."""
    _save({"jacobian_sum": {layer: total.cpu() for layer, total in state.sums.items()}, "n_done": state.n_done,
           "next_idx": state.next_idx, "source_layers": sorted(state.sums), "target_layer": state.target_layer,
           "skip_first": state.skip_first, "metadata": state.metadata}, path)


def read_state(path: str | os.PathLike, layers: list[int], dtype: torch.dtype, metadata: Mapping) -> State:
    """The checkpoint of a fit of these layers and settings, with sums of a dtype.

    Raises FileError where it is of another fit, naming what differs.
    """
    content = _read(path)
    _require("jacobian_sum" in content, path, "is no checkpoint of a fit: it holds no jacobian_sum")
    found = _state(content, path)
    theirs = {**found.metadata, "skip_first": found.skip_first, "layers": sorted(found.sums)}
    if "estimator" in theirs:  # a fit of ours, which says of its products only that they are rough
        theirs.setdefault("products", "full")
    for what, mine in {"products": "full", **metadata, "layers": layers}.items():
        _require(theirs.get(what, mine) == mine, path, f"is of another fit: {what} is {theirs.get(what)!r} there and "
                                                       f"{mine!r} here; give another checkpoint, or remove it")
    found.sums = {layer: total.to(dtype) for layer, total in found.sums.items()}
    found.metadata = {**{key: theirs[key] for key in ("rough_error", "rough_kind") if key in theirs}, **metadata}
    return found


def _state(content: Mapping, path) -> State:
    sums = _matrices(content["jacobian_sum"], "jacobian_sum", path)
    counts = {}
    for key in ("n_done", "next_idx", "target_layer", "skip_first"):
        counts[key] = content.get(key, -1)
        _require(type(counts[key]) is int and counts[key] >= 0, path, f"says {key} {content.get(key)!r}, no count")
    metadata = _plain(content.get("metadata") or {}, path)
    return State(sums, metadata={**metadata, "target_layer": counts["target_layer"]}, **counts)


def _save(content: dict, path: str | os.PathLike) -> None:
    with replacing(path) as draft:
        torch.save(content, draft)


def _read(path: str | os.PathLike) -> dict:
    path = Path(path)
    _require(not path.is_dir(), path, "is a folder, and no lens file: give the file in it")
    if not path.is_file():
        raise FileNotFoundError(f"no lens file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols; the errors say enough
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage has errors of its own
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise FileError(f"{path} is refused: it holds a pickled {named[1]}, and loading that could run code") from (
                error)
        raise FileError(f"{path} is no lens file: cut short, damaged or of another format") from error
    _require(isinstance(content, dict), path, f"is no lens file: it holds a {type(content).__name__}")
    return content


def _require(holds: bool, path, what: str) -> None:
    if not holds:
        raise FileError(f"{path} {what}")


def _matrices(found: object, name: str, path) -> dict[int, Tensor]:
    """{layer: (d, d)} of one d, finite."""
    _require(isinstance(found, dict) and len(found) > 0, path, f"has no matrices in {name}")
    J: dict[int, Tensor] = {}
    for key, matrix in found.items():
        number = int(key) if isinstance(key, str) and key.isdecimal() else key
        _require(type(number) is int and number >= 0, path, f"has {key!r} as a layer in {name}")
        _require(isinstance(matrix, Tensor) and matrix.is_floating_point() and matrix.layout is torch.strided, path,
                 f"has no matrix of numbers at {name}[{key!r}]")
        width = next(iter(J.values()), matrix).shape[:1]
        _require(matrix.shape == (*width, *width), path,
                 f"has shape {tuple(matrix.shape)} at {name}[{key!r}], where (d, d) of one d is wanted")
        _require(bool(torch.isfinite(matrix).all()), path, f"holds NaN or infinity at {name}[{key!r}]")
        J[number] = matrix
    return J


def _factors(part: object, layer: object, width: int, path) -> LowRank:
    _require(isinstance(part, dict) and type(layer) is int and all(isinstance(part.get(name), Tensor)
             for name in FACTORS), path, f"lacks U, S, V or residuals at factors[{layer!r}]")
    rank = part["S"].numel()
    for name, shape in (("U", (width, rank)), ("S", (rank,)), ("V", (width, rank)), ("residuals", (rank,))):
        _require(part[name].shape == shape and bool(torch.isfinite(part[name]).all()), path,
                 f"has {name} of shape {tuple(part[name].shape)} at factors[{layer}], where finite {shape} is wanted")
    for name in ("scale", "error"):
        _require(type(part.get(name)) is float, path, f"has no number {name} at factors[{layer}]")
    return LowRank(*(part[name] for name in FACTORS), part["scale"], part["error"])


def _plain(metadata: object, path) -> dict:
    """A copy of plain values."""
    _require(isinstance(metadata, dict) and all(isinstance(key, str) for key in metadata), path,
             "has metadata that is no dict with names")
    for key, value in metadata.items():
        if isinstance(value, dict):
            _plain(value, path)
        else:
            parts = value if isinstance(value, (list, tuple)) else [value]
            _require(all(isinstance(part, (*PLAIN, list, tuple, dict)) for part in parts), path,
                     f"has metadata {key!r} of {type(value).__name__}, which is no plain value")
    return dict(metadata)
