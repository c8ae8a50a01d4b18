"""How a model is called: where x goes, and what else the model gets.

What a model gets beside x is a side input: a tensor among them is a constant of the program that another call may
replace, anything else belongs to the kind of call.  Of token ids, x is what the model's embedding makes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from specxai.capture.checks import check_model, plain, unwrap
from specxai.capture.embedding import embedded, embedding_of, is_ids, replaced_by

Place = int | str
Wrt = Place | Sequence[Place] | None
_CACHES = ("past_key_values", "past_key_value", "layer_past", "cache_params")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


@dataclass(frozen=True, eq=False)
class Feed:
    """The arguments of a model.

    args, kwargs   positional and by name; None where x goes
    places         where x goes: positions and names.  At more than one, x (1, N) holds the units of each in turn
    shapes         of what is analysed at each place
    embedding      dotted name of the module whose output x is, "" for none; the ids are at the only place then
    wrt            as the user gave it
    batched        x holds several inputs, and not a batch of 1
    """

    args: tuple = (None,)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    places: tuple[Place, ...] = (0,)
    shapes: tuple[torch.Size, ...] = ()
    embedding: str = ""
    wrt: Wrt = None
    batched: bool = False

    @classmethod
    def of(cls, model: nn.Module, x: Tensor | None, args: Sequence = (), kwargs: Mapping[str, Any] | None = None,
           wrt: Wrt = None) -> tuple[Self, Tensor]:
        """(how the model is called, x).

        Raises TypeError or ValueError where the arguments are none that a model can be analysed with.
        """
        model = unwrap(model)
        check_model(model)
        given, named = _arguments(model, x, args, kwargs)
        if isinstance(wrt, str) and x is not None and wrt not in named:
            given, named = given[1:], {wrt: x, **named}
        places = _places(given, named, wrt)
        found = [given[place] if isinstance(place, int) else named[place] for place in places]
        feed = cls(given, named, places, tuple(getattr(one, "shape", ()) for one in found), wrt=wrt)
        if len(places) == 1 and is_ids(found[0]):
            if "embed" in str(places[0]):
                raise TypeError(f"{places[0]} is {found[0].dtype}, where embeddings are wanted; pass token ids as x, "
                                "whose embeddings are then found and analysed, or model.get_input_embeddings()(ids)")
            return feed.with_ids(model, found[0])
        return feed.with_all(None), found[0] if len(found) == 1 else _joined(places, found)

    def again(self, model: nn.Module, x: Tensor | None, args: Sequence | None = None,
              kwargs: Mapping[str, Any] | None = None) -> tuple[Self, Tensor]:
        """(the same kind of call, x) of a further input; side inputs that are not given stay as they are.

        Raises ValueError where what is given is not alike.
        """
        if args is None and kwargs is None:
            return self.with_ids(model, x) if self.embedding and is_ids(x) else (self, x)
        ids = self.at(self.places[0]) if self.embedding else None
        vectors = ids is not None and isinstance(x, Tensor) and not is_ids(x)
        first = isinstance(self.places[0], int) or self.wrt is None
        args = self.args[1:] if args is None and first else self.args if args is None else args
        feed, found = self.of(model, ids if vectors else x, args, self.kwargs if kwargs is None else kwargs, self.wrt)
        if feed.key() != self.key():
            raise ValueError("args or kwargs differ from those that the model was captured with in more than the "
                             "values of tensors; capture the model again with these")
        return feed, x if vectors else found

    def at(self, place: Place) -> Any:
        return self.args[place] if isinstance(place, int) else self.kwargs[place]

    def with_all(self, value: Any) -> Self:
        """With one value at every place of x."""
        args = tuple(value if place in self.places else one for place, one in enumerate(self.args))
        return replace(self, args=args, kwargs={name: value if name in self.places else one
                                                for name, one in self.kwargs.items()})

    def with_ids(self, model: nn.Module, ids: Tensor) -> tuple[Self, Tensor]:
        """(with these token ids, their embeddings).  Raises TypeError where no module reads them."""
        own = plain(model)
        ids = ids.clone()  # what else the model gets may be the same tensor
        feed = self.with_all(ids)
        name = self.embedding or embedding_of(own, ids, lambda: own(*feed.args, **feed.kwargs), self.places[0])
        return replace(feed, embedding=name), embedded(own, name, ids)

    def _leaves(self) -> tuple[list, Any]:
        return tree_flatten((self.args, dict(sorted(self.kwargs.items()))))

    def tensors(self) -> list[Tensor]:
        """The side inputs that are tensors, in order."""
        return [leaf for leaf in self._leaves()[0] if isinstance(leaf, Tensor)]

    def copied(self, dtype: torch.dtype | None = None) -> Self:
        """With copies of its tensors, which a forward() may write to; floating-point ones in `dtype`."""
        def copy(tensor: Tensor) -> Tensor:
            tensor = tensor.detach().clone()
            return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

        args, kwargs = tree_map_only(Tensor, copy, (self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)

    def call(self, model: nn.Module, x: Tensor) -> Any:
        """What the model returns for x."""
        if self.embedding:
            with replaced_by(model, self.embedding, self.at(self.places[0]), x):
                return model(*self.args, **self.kwargs)
        parts = [x]
        if len(self.places) > 1:
            sizes = [math.prod(shape) for shape in self.shapes]
            parts = [part.reshape(shape) for part, shape in zip(x.split(sizes, 1), self.shapes, strict=True)]
        args, kwargs = list(self.args), dict(self.kwargs)
        for place, part in zip(self.places, parts, strict=True):
            (args if isinstance(place, int) else kwargs)[place] = part
        return model(*args, **kwargs)

    def key(self) -> tuple:
        """What two calls share where one program may hold for both: all but the values of tensors."""
        leaves, spec = self._leaves()
        return (repr(spec), tuple(map(_kind, leaves)), self.places, self.shapes if len(self.places) > 1 else (),
                self.embedding)


def _kind(leaf: Any) -> tuple:
    if isinstance(leaf, Tensor):
        return "tensor", leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return (type(leaf), repr(leaf)) if isinstance(leaf, _PLAIN) else (type(leaf), id(leaf))


def _arguments(model: nn.Module, x: Any, args: Any, kwargs: Any) -> tuple[tuple, dict[str, Any]]:
    """(all positional arguments, those by name), without a cache of keys and values."""
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args holds the positional arguments after x, as a tuple; got {type(args).__name__}")
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise TypeError(f"kwargs maps names to arguments, as in {{'use_cache': False}}; got {type(kwargs).__name__}")
    given, named = (*((x,) if x is not None else ()), *args), dict(kwargs)
    cached = next((name for name in _CACHES if named.get(name) is not None), None)
    if cached or named.get("use_cache"):
        what = f"{cached} is given" if cached else "use_cache is True"
        raise ValueError(f"{what}: a cache of keys and values changes from call to call, and has no affine map; pass "
                         "the whole prompt, and kwargs={'use_cache': False}")
    try:
        names = list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        names = []
    if "use_cache" in names[len(given):]:
        named.setdefault("use_cache", False)
    return given, named


def _places(given: tuple, named: dict[str, Any], wrt: Wrt) -> tuple[Place, ...]:
    if wrt is None and not given:
        raise TypeError("x is None: pass the tensor that is analysed, or name it in kwargs by wrt=, as in "
                        f"wrt={next(iter(named), 'inputs_embeds')!r}")
    places = (0,) if wrt is None else tuple(wrt) if isinstance(wrt, (list, tuple)) else (wrt,)
    for place in places:
        if isinstance(place, bool) or not isinstance(place, (int, str)):
            raise TypeError(f"wrt={wrt!r}: name the analysed inputs by keyword, or by position from 0")
        if (place not in named) if isinstance(place, str) else not 0 <= place < len(given):
            raise ValueError(f"wrt={place!r} is no input of this call, which has {len(given)} positional ones and "
                             f"{', '.join(named) or 'none'} by name")
    if not places or len(set(places)) < len(places):
        raise ValueError(f"wrt={wrt!r}: name each analysed input once, and at least one")
    return places


def _joined(places: tuple[Place, ...], found: list) -> Tensor:
    """The units of several inputs, one after the other: (1, N)."""
    for place, one in zip(places, found, strict=True):
        if not isinstance(one, Tensor) or not one.is_floating_point():
            what = str(one.dtype) if isinstance(one, Tensor) else type(one).__name__
            raise TypeError(f"wrt={list(places)}: {place!r} is {what}, and several analysed inputs must be "
                            "floating-point tensors; pass embeddings in place of token ids")
        if (one.dtype, one.device) != (found[0].dtype, found[0].device):
            raise ValueError(f"wrt={list(places)}: {place!r} is {one.dtype} on {one.device}, the first {found[0].dtype}"
                             f" on {found[0].device}; convert one")
    return torch.cat([one.detach().reshape(1, -1) for one in found], 1)
