"""Records on disk: one safetensors file with a JSON header in its metadata.  No pickle, so safe to open.

A `Layout` says what a kind of record consists of; this module knows no record itself.  A file is believed only after
its checksum, the types in its header, and the shapes and dtypes of its tensors against each other; what is read owns
its memory, so that nothing that happens to the file later reaches it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from specxai._files import replacing
from specxai._text import printable
from specxai.errors import FileError

__all__ = ["FLOATING", "LONGEST_HEADER", "Layout", "read", "write"]

LONGEST_HEADER = 16 << 20  # characters
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Layout:
    """What a file of one kind of record holds.

    what      in words, with its article: "an explanation"
    format    name of the header in the file's metadata
    version   that is written; `added` are the fields that older ones lack, {field: what it was before}
    tensors   {field: (dtypes, axes)}; equal names of axes are equal sizes, a last one "*name" is any number of axes
    values    {field: kind}: float, int, str, bool or None, a tuple of alternatives, a list [kind], or a dict
              {str: kind} of any keys or {key: kind, …} of some keys that may be there
    """

    what: str
    format: str
    version: int
    tensors: Mapping[str, tuple[tuple[torch.dtype, ...], tuple[str, ...]]]
    values: Mapping[str, object]
    added: Mapping[int, Mapping[str, object]] = field(default_factory=dict)


def write(path, layout: Layout, record) -> None:
    """Write the fields of `record` to `path`, whole or not at all.

    A path that ends in .npz gets a NumPy export instead.  Raises OSError naming the path, TypeError or ValueError for a
    field that does not fit into a file.
    """
    path = Path(path)
    tensors = {name: getattr(record, name).detach().cpu().contiguous() for name in layout.tensors}
    header = {"format": layout.format, "version": layout.version,
              **{name: getattr(record, name) for name in layout.values}}
    try:
        text = json.dumps(header, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{layout.what} cannot be saved: its header holds a value that JSON cannot: {error}; look at "
                        "its settings") from None
    if len(text) > LONGEST_HEADER:
        raise ValueError(f"{layout.what} cannot be saved: its header would have {len(text):,} characters, and at most "
                         f"{LONGEST_HEADER:,} are read back; look at its settings")
    with replacing(path) as draft:
        if path.suffix == ".npz":
            _write_npz(draft, text, tensors)
        else:
            from safetensors.torch import save as to_bytes

            # Not its save_file: that makes a file which only its owner may read.
            draft.write_bytes(to_bytes(tensors, metadata={layout.format: text, "sha256": _digest(text, tensors)}))


def read(path, layout: Layout) -> dict:
    """The fields of the record in a file written by `write`.

    Raises FileError (a ValueError), naming the cause, for a file that is foreign, damaged, or of a later version.
    """
    path = Path(path)
    noun = layout.what.partition(" ")[2]
    if not path.is_file():
        raise FileNotFoundError(f"no {noun} at {path}")
    if path.suffix == ".npz":
        raise FileError(f"{path} is a NumPy export, which cannot be loaded back: save without the ending .npz")
    metadata, tensors = _contents(path)
    if layout.format not in metadata:
        other = next((name for name in metadata if name.startswith("specxai.")), None)
        raise FileError(f"{path} is a safetensors file, but not a saved {noun}: its metadata "
                        + (f"names it {printable(other)!r}" if other else f"lacks {layout.format!r}"))
    text = metadata[layout.format]
    if len(text) > LONGEST_HEADER:
        raise FileError(f"the header of {path} has {len(text):,} characters, and at most {LONGEST_HEADER:,} are read")
    # Before anything of it is looked at: a flipped bit in a number would pass every check below.
    if metadata.get("sha256") != _digest(text, tensors):
        raise FileError(f"{path} is damaged: its contents do not match their checksum")
    values = _values(path, text, layout)
    _check_tensors(path, tensors, layout)
    return {**tensors, **values}


def _contents(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            # Copies: what safetensors returns is mapped to the file, and changes or crashes with it.
            return file.metadata() or {}, {name: file.get_tensor(name).clone()
                                           for name in file.keys()}  # noqa: SIM118  (not iterable)
    except Exception as error:  # a reader of damaged bytes raises what it comes across
        raise FileError(f"{path} is not a whole safetensors file (cut short, or of another format): "
                        f"{printable(str(error))}") from None


def _values(path: Path, text: str, layout: Layout) -> dict:
    """The header's fields, those that its version lacks as they were then."""
    try:
        header = json.loads(text)
        version = header["version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FileError(f"the header of {path} is damaged: {type(error).__name__}: {printable(str(error))}") from None
    if isinstance(version, bool) or not isinstance(version, int):
        raise FileError(f"the header of {path} is damaged: its version is no number")
    if not 1 <= version <= layout.version:
        raise FileError(f"{path} has format version {version}, and this specxai reads versions up to {layout.version}: "
                        "it was probably written by a later release")
    for added, fields in layout.added.items():
        if version < added:
            header |= fields
    missing = [name for name in layout.values if name not in header]
    if missing:
        raise FileError(f"the header of {path} does not hold what {layout.what} holds: missing {missing}")
    for name, kind in layout.values.items():
        if not _fits(header[name], kind):
            raise FileError(f"the header of {path} is wrong: {name} is not {_words(kind)}")
    return {name: header[name] for name in layout.values}


def _check_tensors(path: Path, tensors: dict, layout: Layout) -> None:
    missing, unknown = sorted(set(layout.tensors) - set(tensors)), sorted(set(tensors) - set(layout.tensors))
    if missing or unknown:
        raise FileError(f"{path} does not hold what {layout.what} holds: missing {missing or 'nothing'}, unknown "
                        f"{[printable(name) for name in unknown] or 'nothing'}")
    sizes: dict[str, object] = {}
    for name, (dtypes, axes) in layout.tensors.items():
        t, single = tensors[name], [axis for axis in axes if not axis.startswith("*")]
        if t.dtype not in dtypes:
            raise FileError(f"{name} in {path} is {t.dtype}, not {' or '.join(map(str, dtypes))}")
        found: list = list(t.shape[:len(single)])
        if len(axes) > len(single):
            found.append(tuple(t.shape[len(single):]))
        fit = len(found) == len(axes) and (len(axes) > len(single) or t.ndim == len(axes))
        if not fit or any(sizes.setdefault(axis, size) != size for axis, size in zip(axes, found, strict=True)):
            raise FileError(f"the shapes in {path} do not fit together: {name} is {tuple(t.shape)}, where the tensors "
                            f"before it ask for ({', '.join(f'{axis}={sizes.get(axis)}' for axis in axes)})")


def _fits(value, kind) -> bool:
    """Is a value of a header of this kind, see `Layout`?"""
    if isinstance(kind, tuple):
        return any(_fits(value, one) for one in kind)
    if isinstance(kind, list):
        return isinstance(value, list | tuple) and all(_fits(one, kind[0]) for one in value)
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return False
        return all(_fits(one, kind[key] if key in kind else kind.get(str, object)) for key, one in value.items())
    if kind is None:
        return value is None
    if kind is int or kind is float:
        # A bool is an int to Python, and an integer of a thousand digits no number that prints.
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        return whole or (kind is float and isinstance(value, float))
    return isinstance(value, kind)


def _words(kind) -> str:
    if isinstance(kind, tuple):
        return " or ".join(map(_words, kind))
    if isinstance(kind, list):
        return f"a list of {_words(kind[0])}"
    if isinstance(kind, dict):
        return "what it should be: " + ", ".join(f"{_words(key) if isinstance(key, type) else key}: {_words(one)}"
                                                 for key, one in kind.items())
    return "null" if kind is None else kind.__name__


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
