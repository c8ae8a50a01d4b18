"""Prompts as token ids: strings through a tokenizer, cut to a length, those without a valid position left out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor

from specxai.transformers import token_ids

Prompt = Tensor | str | Sequence[int]


def ids_of(prompts: Iterable[Prompt], tokenizer: Callable | None, skip_first: int, max_length: int,
           start: int = 0) -> Iterator[tuple[int, Tensor | None]]:
    """(number of the prompt, its ids (1, T), None where it is too short), from prompt `start` on.

    Raises TypeError for what is no prompt, ValueError for a batch and where there are no prompts at all.
    """
    number = -1
    for number, prompt in enumerate([prompts] if isinstance(prompts, (str, Tensor)) else prompts):
        if number < start:
            continue
        ids = token_ids(prompt, tokenizer, f"prompt {number}", "read it with fit(..., tokenizer=)")[:, :max_length]
        if ids.shape[1] < skip_first + 2:
            warnings.warn(f"prompt {number} is left out: it has {ids.shape[1]} tokens, and a lens with skip_first="
                          f"{skip_first} needs {skip_first + 2}", stacklevel=5)  # whoever called fit
            yield number, None
        else:
            yield number, ids
    if number < 0 and not start:
        raise ValueError("there are no prompts: give texts or token ids (1, T); an iterator can be read once only")


def valid_positions(tokens: int, skip_first: int) -> slice:
    """V = {skip_first, …, T − 2}: the last position predicts nothing that is there."""
    return slice(skip_first, tokens - 1)
