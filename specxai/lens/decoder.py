"""A decoder as the lens sees it: a list of blocks that each return the residual stream (1, T, d)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from specxai._blocks import as_integer
from specxai.capture.checks import check_model, unwrap
from specxai.capture.feed import Feed
from specxai.capture.outputs import leaves
from specxai.capture.program import Program
from specxai.capture.recording import Recording
from specxai.errors import LayerError, SpecXAIError
from specxai.lens.prompts import Prompt
from specxai.transformers import from_hf, token_ids

READ_ROWS = 32  # positions that the norm and the unembedding take at once


class _Reached(BaseException):
    """Ends a run of the model at the block whose output is wanted; no `except Exception` of the model's may take it."""


class Decoder:
    """Where a model's blocks are, and runs of it from token ids that begin or end at one of them.

    Args:
        model: a raw decoder of `transformers`, or any module that takes token ids (1, T) first.
        stack: dotted name of the list of blocks; None: the one that `specxai.transformers.from_hf` finds.
        kwargs: further arguments of the model's forward; `use_cache=False` is added where it takes that.

    Raises LayerError where there is no such list or there are several, ValueError for a model in training mode and for
    a cache of keys and values, TypeError for what is no module and for arguments that forward does not take.

    >>> from specxai.zoo.gpt import GPT
    >>> decoder = Decoder(GPT(vocabulary=9, width=8, heads=2, blocks=3, context=16).eval())
    >>> decoder.stack, len(decoder), decoder.residuals(torch.zeros(1, 5, dtype=torch.long), [0, 2])[2].shape
    ('blocks', 3, torch.Size([5, 8]))
    """

    def __init__(self, model: nn.Module, stack: str | None = None, kwargs: Mapping[str, Any] | None = None) -> None:
        check_model(unwrap(model))
        self.model = model
        self.stack, self.names = _blocks_of(model, stack)
        self.blocks = [unwrap(model).get_submodule(name) for name in self.names]
        ids = torch.tensor([[0, 1]], device=next(model.parameters()).device)
        self.kwargs = Feed.of(model, ids, kwargs=kwargs)[0].kwargs
        _check_kwargs(unwrap(model), self.kwargs)
        self._rests: dict[tuple[torch.dtype, int], tuple[Program, int]] = {}

    def __len__(self) -> int:
        return len(self.blocks)

    def layers(self, wanted: list[int] | None) -> list[int]:
        """The source layers, ascending: all below the last for None; negative ones count from the end.

        Raises LayerError for one that is not below the last, TypeError for what are no numbers.
        """
        count = len(self.blocks)
        if count == 1:
            raise LayerError("the model has one block, which is the target: a lens needs a source below it")
        if wanted is None:
            return list(range(count - 1))
        given = _whole(wanted)
        wrong = [layer for layer in given if layer % count == count - 1 or not -count <= layer < count]
        if wrong or not given:
            raise LayerError(f"layer {wrong[0] if wrong else 'list is empty, which'} is no source of a lens: the model "
                             f"has {count} blocks, sources are 0 to {count - 2}, the last block is the target")
        return sorted({layer % count for layer in given})

    @torch.no_grad()
    def residuals(self, ids: Tensor, layers: list[int]) -> dict[int, Tensor]:
        """{layer: block's output (T, d)} at token ids (1, T); the model runs no further than it must.

        Raises LayerError for a block that returns no residual stream.
        """
        found: dict[int, Tensor] = {}
        last = max(layers)

        def keep(layer: int):
            def hook(module, inputs, output):
                found[layer] = self._stream(layer, output, ids.shape[1]).detach()
                if layer == last:
                    raise _Reached
            return hook

        with torch.inference_mode(False), self._hooked({layer: keep(layer) for layer in layers}):
            self._run(ids)
        return {layer: found[layer][0] for layer in layers}

    def between(self, ids: Tensor, source: int, target: int) -> Between:
        """The model from the output of block `source` to that of block `target`, all else as at the ids (1, T)."""
        return Between(self, ids, source, target)

    @torch.no_grad()
    def read(self, h: Tensor) -> Tensor:
        """What the model makes of outputs h (n, d) of its last block: logits (n, vocabulary)."""
        rest, rows = self._rest(h.dtype, h.shape[1])
        parts = []
        for part in h.split(rows):
            whole = torch.cat([part, part.new_ones(rows - len(part), part.shape[1])])  # rows do not see each other
            parts.append(rest.run(whole[None])[rest.output][0, :len(part)])
        return torch.cat(parts)

    def _rest(self, dtype: torch.dtype, width: int) -> tuple[Program, int]:
        """(the program behind the last block, norm and unembedding; how many positions it takes)."""
        if (dtype, width) not in self._rests:
            device = next(self.model.parameters()).device
            for rows in (READ_ROWS, 1):  # one where the model has fewer positions, or returns the last one's logits
                ids = torch.zeros(1, rows, dtype=torch.long, device=device)
                x = torch.ones(1, rows, width, dtype=dtype, device=device)
                try:
                    program = Recording.of(Rest(self, ids), x).program
                except (SpecXAIError, ValueError, IndexError):
                    if rows == 1:
                        raise
                    continue
                if program.run(x)[program.output].shape[1] == rows:
                    break
            self._rests[dtype, width] = program, rows
        return self._rests[dtype, width]

    def _run(self, ids: Tensor) -> Any:
        try:
            return self.model(ids, **self.kwargs)
        except _Reached:
            return None
        except IndexError as error:
            raise ValueError(f"the model takes no such prompt: {ids.shape[1]} tokens, the largest id {int(ids.max())} "
                             f"({error}); give fewer tokens (max_length) or ids of its vocabulary") from error

    @contextmanager
    def _hooked(self, hooks: Mapping[int, Any]) -> Iterator[None]:
        handles = [self.blocks[layer].register_forward_hook(hook) for layer, hook in hooks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _stream(self, layer: int, output: Any, tokens: int) -> Tensor:
        """The residual stream in what a block returns: the first tensor (1, T, d)."""
        for _, tensor in leaves(output):
            if tensor.is_floating_point() and tensor.ndim == 3 and tensor.shape[:2] == (1, tokens):
                return tensor
        shapes = ", ".join(str(tuple(tensor.shape)) for _, tensor in leaves(output)) or "no tensor"
        raise LayerError(f"layer {layer} ({self.names[layer]}) has no residual stream: it returns {shapes}, where a "
                         f"lens needs one tensor (1, {tokens}, d); name another list of blocks with stack=")

    def _replaced(self, layer: int, output: Any, stream: Tensor) -> Any:
        """A block's output with another residual stream in it."""
        if isinstance(output, Tensor):
            return stream
        old = self._stream(layer, output, stream.shape[1])
        if isinstance(output, tuple) and any(part is old for part in output):
            where = next(number for number, part in enumerate(output) if part is old)
            return (*output[:where], stream, *output[where + 1:])
        raise LayerError(f"layer {layer} ({self.names[layer]}) returns {type(output).__name__}, in which the residual "
                         "stream cannot be replaced; wrap the block so that it returns a tensor or a tuple")


def residuals(model: nn.Module, ids: Prompt, layers: Sequence[int] | None = None, *, stack: str | None = None,
              kwargs: Mapping[str, Any] | None = None) -> dict[int, Tensor]:
    """{layer: block's output (T, d)} of a model at token ids (1, T): what a lens reads; all blocks for None, negative
    ones count from the end.

    Raises LayerError for a block that is not there, TypeError or ValueError for what are no ids of one prompt and for
    no ids, and what `Decoder` raises.

    >>> from specxai.zoo.gpt import GPT
    >>> model = GPT(vocabulary=9, width=8, heads=2, blocks=3, context=16).eval()
    >>> sorted(residuals(model, torch.zeros(1, 5, dtype=torch.long)))
    [0, 1, 2]
    """
    decoder, ids = Decoder(model, stack, kwargs), token_ids(ids, None, "ids", "read it with the model's tokenizer")
    if not ids.shape[1]:
        raise ValueError("ids holds no tokens: give one or more, (1, T)")
    count = len(decoder)
    chosen = list(range(count)) if layers is None else _whole(layers)
    wrong = [layer for layer in chosen if not -count <= layer < count]
    if wrong or not chosen:
        raise LayerError(f"layer {wrong[0] if wrong else 'list is empty, which'} is no block: the model has {count}, 0 "
                         f"to {count - 1}")
    found = decoder.residuals(ids.to(next(model.parameters()).device), [layer % count for layer in chosen])
    return {layer: found[layer % count] for layer in chosen}


def _check_kwargs(model: nn.Module, kwargs: Mapping[str, Any]) -> None:
    takes = inspect.signature(model.forward).parameters
    wrong = [name for name in kwargs if name not in takes]
    if wrong and not any(one.kind is one.VAR_KEYWORD for one in takes.values()):
        raise TypeError(f"kwargs has {wrong[0]!r}, which is no argument of {type(model).__name__}.forward: that takes "
                        f"{', '.join(takes)}")


def _whole(layers: Sequence[int]) -> list[int]:
    """Raises TypeError for what is no list of numbers of blocks."""
    found = [as_integer(layer) for layer in layers] if isinstance(layers, Iterable) else [None]
    if None in found:
        raise TypeError(f"layers={layers!r}: give the numbers of blocks, as in [0, 4, -2]")
    return found


class Between(nn.Module):
    """The model as a map from one block's output (1, T, d) to a later one's: what is linearised."""

    def __init__(self, decoder: Decoder, ids: Tensor, source: int, target: int) -> None:
        super().__init__()
        self.model, self._decoder = decoder.model, decoder
        self._ids, self._source, self._target = ids, source, target
        self.eval()

    def with_ids(self, ids: Tensor) -> Between:
        """The same at other token ids."""
        return Between(self._decoder, ids, self._source, self._target)

    def layer(self, layer: int) -> str:
        """A block's name in a capture of this."""
        return f"model.{self._decoder.names[layer]}"

    def forward(self, x: Tensor) -> Tensor:
        decoder, found = self._decoder, []

        def begin(module, inputs, output):
            return decoder._replaced(self._source, output, x)

        def end(module, inputs, output):
            found.append(decoder._stream(self._target, output, x.shape[1]))
            raise _Reached

        with decoder._hooked({self._source: begin, self._target: end}):
            decoder._run(self._ids)
        return found[0]


class Rest(nn.Module):
    """The model as a map from its last block's output (1, T, d) to what it returns, logits (1, T, vocabulary)."""

    def __init__(self, decoder: Decoder, ids: Tensor) -> None:
        super().__init__()
        self.model, self._decoder, self._ids = decoder.model, decoder, ids
        self.eval()

    def forward(self, x: Tensor) -> Any:
        last = len(self._decoder) - 1
        with self._decoder._hooked({last: lambda module, inputs, output: self._decoder._replaced(last, output, x)}):
            return self._decoder._run(self._ids)


def _blocks_of(model: nn.Module, stack: str | None) -> tuple[str, tuple[str, ...]]:
    """(name of the stack, names of its blocks)."""
    if stack is None:
        names = from_hf(model).layers
        return names[0].rpartition(".")[0], names
    inner = unwrap(model)
    stacks = {name: module for name, module in inner.named_modules()
              if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1}
    if stack not in stacks:
        raise LayerError(f"{type(inner).__name__} has no list of two or more blocks {stack!r}; its lists are: "
                         f"{', '.join(stacks) or 'none'}")
    return stack, tuple(f"{stack}.{key}" for key, _ in stacks[stack].named_children())
