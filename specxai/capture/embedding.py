"""The embedding of token ids: which module makes vectors of them, and a model whose embedding returns other vectors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from specxai.capture.checks import first_line
from specxai.errors import CaptureError

# model -> place of the ids -> (name of the embedding, the module), as a run of the model is needed to find it.
_FOUND: WeakKeyDictionary[nn.Module, dict[int | str, tuple[str, ref]]] = WeakKeyDictionary()


def is_ids(x: Any) -> bool:
    """May x be token ids?"""
    return isinstance(x, Tensor) and x.dtype in (torch.int32, torch.int64)


def embedding_of(model: nn.Module, ids: Tensor, run: Callable[[], Any], place: int | str = 0) -> str:
    """Dotted name of the module that makes vectors of the ids in a run of the model: it gets them, and returns a
    floating-point tensor (*ids.shape, d).  Of several, what `get_input_embeddings()` says, else the first.

    place   of the ids among the model's arguments: an encoder's and a decoder's may have embeddings of their own

    Raises TypeError where there is none, CaptureError where the model itself fails.
    """
    known = _FOUND.setdefault(model, {})
    if place in known and dict(model.named_modules()).get(known[place][0]) is known[place][1]():
        return known[place][0]
    same: list[str] = []  # reads the ids' own memory
    alike: list[str] = []
    thread = threading.get_ident()
    with ExitStack() as hooks, torch.inference_mode(False), torch.no_grad():
        for name, module in model.named_modules():
            def look(module, args, kwargs, output, name=name):
                vectors = isinstance(output, Tensor) and output.is_floating_point() and output.ndim > 1
                fits = vectors and output.numel() == ids.numel() * output.shape[-1]
                if fits and threading.get_ident() == thread and (found := _reading(args, kwargs, ids)):
                    (same if found == "same" else alike).append(name)

            if name and not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_hook(look, with_kwargs=True).remove)
        try:
            run()
        except Exception as error:
            if any(isinstance(module, nn.Embedding) for module in model.modules()):
                raise CaptureError(f"{type(model).__name__} itself fails on {_named(ids)}: {first_line(error)}. Give "
                                   "it ids below its vocabulary's size, and what it takes beside them in args= and "
                                   "kwargs=") from error
    found = same or alike
    if not found:
        raise TypeError(f"the input is {ids.dtype}, and {type(model).__name__} has no embedding that reads it; nothing "
                        "is linear in integers.  For tokens, pass embeddings by kwargs= and wrt=, or to the part of "
                        "the model after its embedding layer; for pixels, pass x.float() / 255")
    try:
        said = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        said = None
    name = next((name for name in found if model.get_submodule(name) is said), found[0])
    known[place] = name, ref(model.get_submodule(name))
    return name


def embedded(model: nn.Module, name: str, ids: Tensor) -> Tensor:
    """What the module makes of the ids, before hooks of the user's."""
    seen: list[Tensor] = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda module, args, output: seen.append(output), prepend=True)
    try:
        with torch.inference_mode(False), torch.no_grad():
            module(ids)
    except Exception as error:
        raise CaptureError(f"the embedding {name!r} fails on {_named(ids)}: {first_line(error)}. Give it ids below its "
                           "vocabulary's size") from error
    finally:
        handle.remove()
    return seen[0].detach()


@contextmanager
def replaced_by(model: nn.Module, name: str, ids: Tensor, x: Tensor) -> Iterator[None]:
    """While open, the module returns x where it reads the ids: their memory, or the first copy of them.

    Raises CaptureError at the end where it never did.
    """
    count, thread = 0, threading.get_ident()

    def replace(module, args, kwargs, output):
        nonlocal count
        found = _reading(args, kwargs, ids) if threading.get_ident() == thread else ""
        if not found or (found == "alike" and count):
            return None
        count += 1
        return x if x.shape == output.shape else x.reshape(output.shape)

    # Before the hooks of others, the recorder's too: these see x as the module's output.
    handle = model.get_submodule(name).register_forward_hook(replace, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()
    if not count:
        raise CaptureError(f"the embedding {name!r} never reads the token ids; pass embeddings by kwargs= and wrt=")


def _named(ids: Tensor) -> str:
    values = f" from {int(ids.min())} to {int(ids.max())}" if ids.numel() else ""
    return f"token ids {tuple(ids.shape)}{values}"


def _reading(args: tuple, kwargs: dict, ids: Tensor) -> str:
    """Does a module get the ids: "same" for their memory, "alike" for a copy, "" for neither."""
    for given in (*args, *kwargs.values()):
        if isinstance(given, Tensor) and not given.is_floating_point() and given.numel() == ids.numel():
            if given.untyped_storage().data_ptr() == ids.untyped_storage().data_ptr():
                return "same"
            with _disable_current_modes():  # this is no part of the model
                if torch.equal(given.reshape(-1).to(ids.dtype), ids.reshape(-1)):
                    return "alike"
    return ""
