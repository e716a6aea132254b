"""Repeated word n-grams of one document, for every n in turn, by sorting integers instead of hashing tuples of words.

A place can start a repeated n-gram only where a repeated (n-1)-gram starts. So each step numbers the n-grams at the places that are left
(number of the (n-1)-gram, word after it), which is exact, and keeps those whose number occurs twice: the work shrinks with n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Repeated:
    """The n-grams of one size that occur at least twice: ``places`` where they start, rising, the number of the n-gram at each, and how often each occurs."""

    n: int
    places: np.ndarray  # int64 (P,)
    numbers: np.ndarray  # int64 (P,), below len(counts)
    counts: np.ndarray  # int64 (distinct,)

    def most_frequent(self) -> tuple[int, int]:
        """(place, count) of the most frequent n-gram; the first one in the text among equals."""
        count = self.counts.max()
        return int(self.places[np.argmax(self.counts[self.numbers] == count)]), int(count)

    def repeats(self) -> np.ndarray:
        """Places of n-grams that repeat an earlier one, read from left to right; reading goes on after a repeat, so none overlap."""
        seen = bytearray(len(self.counts))
        found: list[int] = []
        free_from = 0
        for place, number in zip(self.places.tolist(), self.numbers.tolist(), strict=True):
            if place >= free_from:
                if seen[number]:
                    found.append(place)
                    free_from = place + self.n
                else:
                    seen[number] = 1
        return np.array(found, np.int64)


class Ngrams:
    """The repeated n-grams of a document by size, each made from the one before when first asked for."""

    def __init__(self, words: Sequence[str], counts: Mapping[str, int]):
        """``counts``: how often every word occurs."""
        index = dict(zip(counts, range(len(counts)), strict=True))
        self._distinct = len(index)
        self._ids = np.fromiter(map(index.__getitem__, words), np.int64, len(words))
        self._starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(np.fromiter(map(len, counts), np.int64, len(counts))[self._ids])))
        times = np.fromiter(counts.values(), np.int64, len(counts))
        self._made = [_numbered(1, np.arange(len(words)), self._ids, times)]

    def of(self, n: int) -> Repeated:
        while len(self._made) < n:
            before, size = self._made[-1], len(self._made) + 1
            fits = int(np.searchsorted(before.places, len(self._ids) - size, side="right"))
            places = before.places[:fits]
            self._made.append(_repeated(size, places, before.numbers[:fits] * self._distinct + self._ids[places + (size - 1)]))
        return self._made[n - 1]

    def n_chars(self, places: np.ndarray | int, n: int) -> int:
        """Characters of the words of the n-grams at these places, all together."""
        return int((self._starts[places + n] - self._starts[places]).sum())


def _repeated(n: int, places: np.ndarray, keys: np.ndarray) -> Repeated:
    """Those of the n-grams at ``places`` whose key occurs twice; equal keys mean equal n-grams."""
    if not len(keys):
        return Repeated(n, places, keys, keys)
    order = np.argsort(keys)
    ordered = keys[order]
    first = np.flatnonzero(ordered[1:] != ordered[:-1])
    ends = np.append(first, len(keys) - 1)
    lengths = ends + 1
    lengths[1:] -= lengths[:-1].copy()
    number = np.empty(len(keys), np.int64)
    number[order] = np.repeat(np.arange(len(lengths)), lengths)
    return _numbered(n, places, number, lengths)


def _numbered(n: int, places: np.ndarray, numbers: np.ndarray, counts: np.ndarray) -> Repeated:
    """The places whose n-gram occurs twice; what is left is numbered anew, in the same order."""
    twice = counts > 1
    renumbered = np.where(twice, np.cumsum(twice) - 1, -1)[numbers]
    left = np.flatnonzero(renumbered >= 0)
    return Repeated(n, places[left], renumbered[left], counts[twice])
