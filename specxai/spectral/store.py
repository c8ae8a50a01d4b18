"""Explanations on disk: one safetensors file with a JSON header in its metadata.  No pickle, so safe to open."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from specxai._files import replacing

__all__ = ["FORMAT", "VERSION", "load", "save"]

FORMAT = "specxai.explanation"
VERSION = 1

_VECTORS = ("S", "alpha", "psi", "projections", "residuals", "indices")  # (k,)
_TENSORS = (*_VECTORS, "target", "right_vectors", "left_vectors", "x", "gradient", "bypass_gradient")
_SCALARS = ("layer", "target_label", "output", "bias", "bypass", "remainder", "bias_contributions", "exactness",
            "error", "method", "products", "gates", "backend", "seed", "settings")


def save(e, path) -> None:
    """Write explanation `e` to `path`, whole or not at all; raises OSError naming the path."""
    path = Path(path)
    tensors = {name: getattr(e, name).detach().contiguous() for name in _TENSORS}
    header = {"format": FORMAT, "version": VERSION, **{name: getattr(e, name) for name in _SCALARS}}
    try:
        text = json.dumps(header, sort_keys=True)
    except TypeError as error:
        raise TypeError(f"the explanation cannot be saved: its header holds a value that JSON cannot: {error}; look "
                        "at its settings") from None
    with replacing(path) as draft:
        if path.suffix == ".npz":
            _write_npz(draft, text, tensors)
        else:
            from safetensors.torch import save as to_bytes

            # Not its save_file: that makes a file which only its owner may read.
            draft.write_bytes(to_bytes(tensors, metadata={FORMAT: text, "sha256": _digest(text, tensors)}))


def load(path):
    """Read an explanation written by `save`.

    Raises ValueError, naming the cause, for a file that is foreign, damaged, or of a later version.
    """
    from safetensors import SafetensorError, safe_open

    from specxai.spectral.explanation import Explanation

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no explanation at {path}")
    if path.suffix == ".npz":
        raise ValueError(f"{path} is a NumPy export, which cannot be loaded back: save without the ending .npz")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not iterable)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file (cut short, or of another format): {error}") from None
    if FORMAT not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not a saved explanation: its metadata lacks {FORMAT!r}")
    header = _header(path, metadata, tensors)
    _check_shapes(path, tensors)
    return Explanation(**tensors, **{name: header[name] for name in _SCALARS})


def _header(path, metadata: dict, tensors: dict) -> dict:
    text = metadata[FORMAT]
    try:
        header = json.loads(text)
        version = header["version"]
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"the header of {path} is damaged: {error!r}") from None
    if version != VERSION:
        raise ValueError(f"{path} has format version {version}, and this specxai reads version {VERSION}: "
                         "it was probably written by a later release")
    missing = [n for n in _TENSORS if n not in tensors] + [n for n in _SCALARS if n not in header]
    if missing or len(tensors) > len(_TENSORS):
        raise ValueError(f"{path} does not hold what a saved explanation holds: missing {missing or 'nothing'}, "
                         f"unknown {sorted(set(tensors) - set(_TENSORS)) or 'nothing'}")
    if metadata.get("sha256") != _digest(text, tensors):
        raise ValueError(f"{path} is damaged: its contents do not match their checksum")
    return header


def _check_shapes(path, tensors: dict) -> None:
    k, shape = len(tensors["S"]), tensors["x"].shape
    wanted = dict.fromkeys(_VECTORS, (k,))
    wanted |= {"right_vectors": (k, *shape), "gradient": tuple(shape), "bypass_gradient": tuple(shape)}
    wrong = {n: tuple(tensors[n].shape) for n, s in wanted.items() if tuple(tensors[n].shape) != s}
    if wrong or tensors["left_vectors"].shape[:1] != (k,):
        raise ValueError(f"the shapes in {path} do not fit together: {k} components of input shape {tuple(shape)}, "
                         f"but {wrong or {'left_vectors': tuple(tensors['left_vectors'].shape)}}")


def _digest(text: str, tensors: dict) -> str:
    """sha256 over the header and every tensor's name, dtype, shape and bytes: a flipped bit would still load."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        # flatten first: a 0-dim tensor cannot be viewed as bytes.
        digest.update(t.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _write_npz(part: Path, text: str, tensors: dict) -> None:
    import numpy as np

    # NumPy has no bfloat16; float32 holds each of its values.
    arrays = {n: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for n, t in tensors.items()}
    with open(part, "wb") as file:  # a file, since savez appends .npz to a name
        np.savez(file, header=np.array(text), **arrays)
