"""Prompts as token ids: strings through a tokenizer, cut to a length, those without a valid position left out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor


def token_ids(prompts: Iterable[Tensor | str], tokenizer: Callable | None, skip_first: int, max_length: int,
              start: int = 0) -> Iterator[tuple[int, Tensor | None]]:
    """(number of the prompt, its ids (1, T), None where it is too short), from prompt `start` on.

    Raises TypeError for what is no prompt, ValueError for a batch.
    """
    for number, prompt in enumerate([prompts] if isinstance(prompts, (str, Tensor)) else prompts):
        if number < start:
            continue
        ids = as_ids(prompt, tokenizer, f"prompt {number}")[:, :max_length]
        if ids.shape[1] < skip_first + 2:
            warnings.warn(f"prompt {number} is left out: it has {ids.shape[1]} tokens, and a lens with skip_first="
                          f"{skip_first} needs {skip_first + 2}", stacklevel=5)  # whoever called fit
            yield number, None
        else:
            yield number, ids


def valid_positions(tokens: int, skip_first: int) -> slice:
    """V = {skip_first, …, T − 2}: the last position predicts nothing that is there."""
    return slice(skip_first, tokens - 1)


def as_ids(prompt: Tensor | str, tokenizer: Callable | None, what: str) -> Tensor:
    """(1, T) int64; `what` names the prompt in errors."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise TypeError(f"{what} is a string: give fit(..., tokenizer=) to read it, or token ids (1, T)")
        found = tokenizer(prompt)
        found = getattr(found, "input_ids", None) if hasattr(found, "input_ids") else found["input_ids"]
        prompt = torch.as_tensor(found)
    if not isinstance(prompt, Tensor):
        raise TypeError(f"{what} is a {type(prompt).__name__}: give a string or token ids (1, T)")
    if prompt.is_floating_point() or prompt.is_complex() or prompt.dtype == torch.bool:
        raise TypeError(f"{what} holds {prompt.dtype}, and a lens reads token ids: give the ids, not their "
                        "embeddings")
    if prompt.ndim == 1:
        prompt = prompt[None]
    if prompt.ndim != 2 or prompt.shape[0] != 1:
        raise ValueError(f"{what} has shape {tuple(prompt.shape)}: give one prompt (1, T) at a time")
    return prompt.long()
