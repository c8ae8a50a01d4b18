"""Tensors inside of what a model or a module returns: tuples, lists, mappings, dataclasses, and nests of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from specxai.errors import CaptureError

Keys = tuple[Any, ...]
Selector = str | int | tuple | Callable[[Any], Tensor] | None


def leaves(output: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Tensor]]:
    """(keys, tensor) of each tensor in an output, in order; no keys for a lone tensor.

    >>> import torch
    >>> [keys for keys, _ in leaves({"logits": torch.zeros(1), "hidden": [torch.zeros(1), 3]})]
    [('logits',), ('hidden', 0)]
    """
    if isinstance(output, Tensor):
        yield keys, output
    elif len(keys) < 8:
        for key, item in _items(output):
            yield from leaves(item, (*keys, key))


def _items(output: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, (list, tuple)):
        yield from enumerate(output)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        yield from ((part.name, getattr(output, part.name)) for part in dataclasses.fields(output))
    elif hasattr(output, "__dict__") and not callable(output):
        yield from vars(output).items()


def subscripts(keys: Keys) -> str:
    """The keys as a layer name shows them.

    >>> subscripts((1, 0)), subscripts(("hidden",))
    ('[1][0]', '[hidden]')
    """
    return "".join(f"[{key}]" for key in keys)


def select(output: Any, selector: Selector) -> Tensor:
    """The tensor that `selector` names in a model's output: a key, an index, a tuple of them from the outside in, or a
    function of the output.

    Raises CaptureError, which lists what there is.
    """
    if callable(selector):
        found = selector(output)
    else:
        found = output
        for key in selector if isinstance(selector, tuple) else (selector,):
            found = _at(found, key, output)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        what = f"a tensor of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise CaptureError(f"output={selector!r} is {what}, not a floating-point tensor; {_offer(output)}")
    return found


def selector_key(selector: Selector) -> Any:
    """What equal selectors share: of functions, the code and what it closes over, since a lambda is made anew at every
    call of the user's."""
    code = getattr(selector, "__code__", None)
    if code is None:
        return id(selector) if callable(selector) else selector
    try:
        cells = tuple(id(cell.cell_contents) for cell in selector.__closure__ or ())
    except ValueError:  # a name that has no value yet
        return id(selector)
    return code, cells, id(selector.__defaults__), id(getattr(selector, "__self__", None))


def _at(found: Any, key: Any, output: Any) -> Any:
    try:
        if isinstance(found, Mapping) and key not in found and isinstance(key, int):
            return list(found.values())[key]
        if isinstance(found, Tensor):
            raise KeyError(key)
        if isinstance(found, Mapping) or (isinstance(found, (list, tuple)) and not isinstance(key, str)):
            return found[key]
        return getattr(found, key) if isinstance(key, str) else list(dict(_items(found)).values())[key]
    except (LookupError, AttributeError, TypeError):
        raise CaptureError(f"the model's output has no {key!r}; {_offer(output)}") from None


def _offer(output: Any) -> str:
    names = [subscripts(keys) or "the output itself" for keys, tensor in leaves(output) if tensor.is_floating_point()]
    return f"it holds {', '.join(names[:12])}" if names else "it holds no floating-point tensor"
