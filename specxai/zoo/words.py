"""Byte-pair encoding: text as numbers of frequent pieces, learned from counts of words and exact both ways."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

# A piece never crosses these: a word with the space before it, a number, signs, or white space.
_WORD = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\w\s]+| ?_+|\s+(?!\S)|\s+")
BYTES = 256


class Words:
    """The pieces of a text: number i < 256 is a byte, 256 + j what `merges[j]` joins.

    >>> words = Words.learned("the cat, the hat, the mat", 2)
    >>> words.encode("the cat"), words.decode(words.encode("the hat ¿"))
    ([116, 257, 32, 99, 256], 'the hat ¿')
    """

    def __init__(self, merges: Iterable[Sequence[int]]) -> None:
        self.merges = [(int(left), int(right)) for left, right in merges]
        self._rank = {pair: number for number, pair in enumerate(self.merges)}
        self._pieces = [bytes([byte]) for byte in range(BYTES)]
        for left, right in self.merges:
            self._pieces.append(self._pieces[left] + self._pieces[right])
        self._word = lru_cache(1 << 16)(self._encoded)

    @classmethod
    def learned(cls, text: str, merges: int) -> Words:
        """So many merges, each of the pair that is the most frequent one then; the smaller pair of two."""
        words = Counter(tuple(word.encode()) for word in _WORD.findall(text))
        pairs: Counter[tuple[int, int]] = Counter()
        where: dict[tuple[int, int], set[tuple[int, ...]]] = {}

        def count(word: tuple[int, ...], times: int) -> None:
            for pair in pairwise(word):
                pairs[pair] += times
                where.setdefault(pair, set()).add(word)

        for word, times in words.items():
            count(word, times)
        found = []
        while len(found) < merges and pairs:
            best = min(pairs, key=lambda pair: (-pairs[pair], pair))
            number = BYTES + len(found)
            found.append(best)
            for word in list(where[best]):
                if times := words.pop(word, 0):
                    count(word, -times)
                    joined = _joined(word, best, number)
                    words[joined] += times
                    count(joined, times)
            del pairs[best], where[best]
        return cls(found)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """The text as numbers."""
        return [number for word in _WORD.findall(text) for number in self._word(word)]

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of numbers; a character of which bytes are missing becomes �."""
        return b"".join(self._pieces[number] for number in numbers).decode(errors="replace")

    def __call__(self, text: str) -> dict[str, list[int]]:
        """As the tokenizers of `transformers` are called."""
        return {"input_ids": self.encode(text)}

    def _encoded(self, word: str) -> tuple[int, ...]:
        pieces = tuple(word.encode())
        while len(pieces) > 1:
            first = min(pairwise(pieces), key=lambda pair: self._rank.get(pair, len(self._rank)))
            if first not in self._rank:
                break
            pieces = _joined(pieces, first, BYTES + self._rank[first])
        return pieces


def _joined(word: tuple[int, ...], pair: tuple[int, int], number: int) -> tuple[int, ...]:
    """The word with every such pair replaced by its number."""
    out, at = [], 0
    while at < len(word):
        if word[at:at + 2] == pair:
            out.append(number)
            at += 2
        else:
            out.append(word[at])
            at += 1
    return tuple(out)
