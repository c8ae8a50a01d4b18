"""Language models of `transformers`, TransformerLens and the like: where their residual stream is, and prompts.

Nothing is known of any class.  The stack of blocks, the embedding, the final norm and the unembedding are found in one
run of the model on two tokens: blocks are the children of a list that run one after the other, and each returns what it
was given with something added.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from specxai.affine.captured import linearize
from specxai.affine.local import Local
from specxai.capture.checks import check_model, first_line, unwrap
from specxai.capture.feed import Feed
from specxai.capture.outputs import leaves
from specxai.errors import CaptureError, LayerError

__all__ = ["Transformer", "from_hf"]


@dataclass(frozen=True, eq=False)
class Transformer:
    """A model that reads token ids (1, T) into a residual stream (1, T, d); made by `from_hf`.

    model, tokenizer   as they were given
    layers             dotted names of the blocks, in order; the residual stream after a block is its output
    embedding          dotted name of the module that makes vectors of token ids
    norm               of the one that reads the last block's output, "" for none
    unembedding        of the one that makes logits (1, T, V) of the stream, "" for none
    d_model            d

    >>> import torch, specxai
    >>> from torch import nn
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.mlp = nn.Linear(4, 4)
    ...     def forward(self, h):
    ...         return h + self.mlp(h).relu()
    >>> blocks = nn.Sequential(Block(), Block())
    >>> net = nn.Sequential(nn.Embedding(9, 4), blocks, nn.LayerNorm(4), nn.Linear(4, 9)).eval()
    >>> t = specxai.transformers.from_hf(net)
    >>> t.layers, t.embedding, t.norm, t.unembedding, t.d_model
    (('1.0', '1.1'), '0', '2', '3', 4)
    >>> local = t.linearize([1, 5, 2])
    >>> local.operator(t.layer_name(0), t.layer_name(-1), target_positions=-1).shape
    (4, 12)
    """

    model: nn.Module
    tokenizer: Callable | None
    layers: tuple[str, ...]
    embedding: str
    norm: str
    unembedding: str
    d_model: int
    _in: nn.Module = field(repr=False)

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.layers)

    def layer_name(self, layer: int | str) -> str:
        """The name of block `layer`, negative ones from the end; a block's own name is returned as it is.

        Raises LayerError for what is no block: it has no residual stream.
        """
        if isinstance(layer, int) and not isinstance(layer, bool) and -len(self) <= layer < len(self):
            return self.layers[layer]
        if layer in self.layers:
            return layer
        raise LayerError(f"layer {layer!r} has no residual stream: that is after the blocks {self.layers[0]!r} to "
                         f"{self.layers[-1]!r}, 0 to {len(self) - 1}")

    def ids(self, prompt: str | Sequence[int] | Tensor) -> Tensor:
        """Token ids (1, T) of a text, of a list of ids or of a tensor (T,) or (1, T).

        Raises TypeError for what holds no ids and for a text without a tokenizer, ValueError for several prompts and
        for no tokens.
        """
        ids = token_ids(prompt, self.tokenizer, "the prompt", "read it with from_hf(model, tokenizer)")
        if not ids.shape[1]:
            raise ValueError(f"the prompt {prompt!r} has no tokens: give one or more, as in [1, 5, 2]")
        return ids.to(next(self._in.parameters()).device)

    def linearize(self, prompt: str | Sequence[int] | Tensor, **options: Any) -> Local:
        """The affine map at a prompt, from its embeddings (1, T, d); options as for `specxai.linearize`.

        Raises whatever `ids` and `specxai.linearize` raise.
        """
        return linearize(self.model, self.ids(prompt), **options)

    def unembed(self, h: Tensor) -> Tensor:
        """Logits (…, V) of a residual stream (…, d): the final norm and the unembedding.

        Raises LayerError where the model has no unembedding.
        """
        if not self.unembedding:
            raise LayerError(f"{type(self.model).__name__} has no unembedding: nothing in it makes logits of the "
                             "residual stream; pass the model with its language modelling head")
        with torch.no_grad():
            h = self._in.get_submodule(self.norm)(h) if self.norm else h
            return self._in.get_submodule(self.unembedding)(h)


def from_hf(model: nn.Module, tokenizer: Callable | None = None, stack: str | None = None) -> Transformer:
    """What is to be known of a language model: its blocks, embedding, final norm and unembedding, found by structure.

    model       of `transformers`, a bridge or HookedTransformer of TransformerLens, or any module that is called with
                token ids (1, T), in eval mode
    tokenizer   text -> token ids, or a mapping with "input_ids"; with TransformerLens the model's `to_tokens`
    stack       dotted name of the list of blocks, where the model has several, as an encoder and a decoder

    Raises LayerError where no blocks with a residual stream are found, ValueError for a model in training mode,
    CaptureError where it cannot be run on token ids.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)).eval()
    >>> specxai.transformers.from_hf(net)
    Traceback (most recent call last):
    specxai.errors.LayerError: Sequential has no stack of blocks with a residual stream (1, T, d): modules of one list \
that run in turn, each on what the one before returned
    """
    inner = unwrap(model)
    check_model(inner)
    run = _Run(inner)
    found, what = run.streams(), type(inner).__name__
    if not found:
        raise LayerError(f"{what} has no stack of blocks with a residual stream (1, T, d): modules of one list that "
                         "run in turn, each on what the one before returned")
    if (stack is None and len(found) > 1) or (stack is not None and stack not in found):
        raise LayerError(f"{what} has {len(found)} stacks of blocks, {', '.join(found)}: name one by stack=, got "
                         f"{stack!r}")
    blocks = found[stack or next(iter(found))]
    return Transformer(model, tokenizer, blocks, run.embedding, run.norm(blocks[-1]), run.unembedding(blocks[-1]),
                       run.outputs[blocks[-1]].shape[-1], inner)


def token_ids(prompt: str | Sequence[int] | Tensor, tokenizer: Callable | None, what: str, remedy: str) -> Tensor:
    """Token ids (1, T), int64, of a text, of a list of ids or of a tensor (T,) or (1, T); T may be 0.

    what        names the prompt in errors
    remedy      how a text can be read

    Raises TypeError for what holds no ids and for a text without a tokenizer, ValueError for several prompts.

    >>> token_ids([3, 1], None, "the prompt", "read it with from_hf(model, tokenizer)")
    tensor([[3, 1]])
    """
    if isinstance(prompt, str):
        prompt = _read(prompt, tokenizer, what, remedy)
    try:
        ids = torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"no token ids can be made of {what}, a {type(prompt).__name__} ({first_line(error)}): give a "
                        "text, a list of ids or a tensor (1, T)") from error
    if ids.ndim == 0:
        raise TypeError(f"{what} is the number {prompt!r:.60}: give all ids of a prompt, as in [[1, 5, 2]] or a tensor "
                        "(1, T)")
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise TypeError(f"{what} holds {ids.dtype}, where token ids are wanted: give the ids, not their embeddings")
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise ValueError(f"{what} has shape {tuple(ids.shape)}: give one prompt (1, T) at a time")
    return ids.long()


def _read(text: str, tokenizer: Callable | None, what: str, remedy: str) -> Any:
    """What a tokenizer makes of a text: ids, in a list or a tensor."""
    if not callable(tokenizer):
        got = "" if tokenizer is None else f", and the tokenizer is a {type(tokenizer).__name__} that cannot be called"
        raise TypeError(f"{what} is a text{got}: {remedy}, or give token ids (1, T)")
    found = tokenizer(text)
    found = found.get("input_ids") if isinstance(found, Mapping) else getattr(found, "input_ids", found)
    if not isinstance(found, (Tensor, Sequence)) or isinstance(found, str):
        raise TypeError(f"the tokenizer makes a {type(found).__name__} of {what}: it must return token ids, or a "
                        "mapping with input_ids")
    return found


class _Run:
    """What a run of the model on two tokens called, in order, and what it gave and got.

    order             (name, has it ended?) of every call
    inputs, outputs   name -> the first floating-point tensor of the first call
    embedding         name of what makes vectors of the tokens
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.order: list[tuple[str, bool]] = []
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        parameter = next(model.parameters(), torch.empty(0))
        ids = torch.tensor([[0, 1]], device=parameter.device)
        takes = inspect.signature(model.forward).parameters
        feed, x = Feed.of(model, ids, kwargs={"decoder_input_ids": ids} if "decoder_input_ids" in takes else {})
        self.embedding, self._tokens = feed.embedding, x.shape[:-1]
        with ExitStack() as hooks, torch.inference_mode(False), torch.no_grad():
            for name, module in model.named_modules():
                if name and not isinstance(module, torch.jit.ScriptModule):
                    begin, end = self._hooks(name)
                    hooks.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
                    hooks.callback(module.register_forward_hook(end).remove)
            try:
                feed.call(model, x)
            except Exception as error:
                raise CaptureError(f"{type(model).__name__} itself fails on token ids (1, 2): {first_line(error)}"
                                   ) from error

    def _hooks(self, name: str) -> tuple[Callable, Callable]:
        thread = threading.get_ident()

        def begin(module, args, kwargs):
            if threading.get_ident() == thread:
                self.order.append((name, False))
                _keep(self.inputs, name, (args, kwargs))

        def end(module, args, output):
            if threading.get_ident() == thread:
                self.order.append((name, True))
                _keep(self.outputs, name, output)

        return begin, end

    def streams(self) -> dict[str, tuple[str, ...]]:
        """name of a list -> its blocks, of those whose blocks share a residual stream and lie in no other block."""
        found = {}
        for name, module in self._model.named_modules():
            blocks = tuple(f"{name}.{key}" for key, child in module.named_children() if any(child.children()))
            if name and isinstance(module, (nn.ModuleList, nn.Sequential)) and self._is_stream(blocks):
                found[name] = blocks
        inner = {block for blocks in found.values() for block in blocks}
        return {name: blocks for name, blocks in found.items()
                if not any(name.startswith(f"{block}.") for block in inner)}

    def _is_stream(self, blocks: tuple[str, ...]) -> bool:
        """Does each read what the one before returned, and return the same shape (1, T, d)?"""
        if not blocks or any(name not in self.inputs or name not in self.outputs for name in blocks):
            return False
        shapes = {part[name].shape for name in blocks for part in (self.inputs, self.outputs)}
        return len(shapes) == 1 and shapes.pop()[:-1] == self._tokens and all(
            torch.equal(self.outputs[one], self.inputs[two]) for one, two in pairwise(blocks))

    def norm(self, last: str) -> str:
        """What reads the output of the last block, and returns its shape; "" for none."""
        for name, has_ended in self._after(last):
            given, made = self.inputs.get(name), self.outputs.get(name)
            if not has_ended and given is not None and made is not None and made.shape == given.shape and torch.equal(
                    given, self.outputs[last]) and not isinstance(self._model.get_submodule(name), _PASSIVE):
                return name
        return ""

    def unembedding(self, last: str) -> str:
        """What makes a number of each token of the vocabulary after the last block; "" for none."""
        rows = {parameter.shape[0] for parameter in self._model.get_submodule(self.embedding).parameters()}
        return next((name for name, has_ended in self._after(last) if has_ended and name in self.outputs
                     and self.outputs[name].shape[:-1] == self._tokens and self.outputs[name].shape[-1] in rows), "")

    def _after(self, name: str) -> list[tuple[str, bool]]:
        return self.order[self.order.index((name, True)) + 1:]


_PASSIVE = (nn.Identity, nn.Dropout)


def _keep(found: dict[str, Tensor], name: str, given: Any) -> None:
    tensor = next((tensor for _, tensor in leaves(given) if tensor.is_floating_point()), None)
    if tensor is not None:
        found.setdefault(name, tensor)
