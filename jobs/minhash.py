"""Word n-grams as 64-bit hashes, exact Jaccard similarity, MinHash signatures and LSH bands. Pure numpy, no Spark.

Sources: Broder 1997 (resemblance, MinHash); Leskovec, Rajaraman, Ullman, Mining of Massive Datasets ch. 3 (banding).

A hash is all that is kept of an n-gram. Two different n-grams get the same 64-bit hash with probability 2^-64 per pair, so among the
shingles of two documents of a million words the expected number of false matches is below 10^-7; it is not checked further here.
Everything stored (``band_hashes``, ``text_hash``) is the same on every machine and for every numpy version: the constants come from
splitmix64 of the seed, never from a random generator whose stream may change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # splitmix64's finaliser (Steele et al. 2014)
_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment
_FOLD = np.uint64(0xD6E8FEB86659FD93)  # odd, so that multiplying is a bijection
_CHUNK = 32_768  # hashes permuted at once: 256 KiB stay in the cache of a core


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: a bijection of uint64 in which every input bit changes every output bit with probability about 1/2."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def words(text: str) -> list[str]:
    """Lower case, split at Unicode whitespace. Punctuation stays: in code it is the meaning."""
    return text.lower().split()


def text_hash(text: str) -> int:
    """Signed 64-bit hash of the normalised text (lower case, whitespace squeezed): equal texts are exact duplicates."""
    unsigned = xxhash.xxh3_64_intdigest(" ".join(words(text)).encode())
    return unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned


class WordHashes(dict[str, int]):
    """Hash of every word seen, computed once. Use one per batch, so that it does not grow with the corpus."""

    def __missing__(self, word: str) -> int:
        self[word] = made = xxhash.xxh3_64_intdigest(word.encode())
        return made


def ngram_hashes(tokens: Sequence[str], n: int, known: WordHashes) -> np.ndarray:
    """Hashes of the n-grams of ``tokens`` in order, uint64 of shape (max(0, len - n + 1),); position i is tokens[i:i+n]."""
    count = len(tokens) - n + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    hashes = np.fromiter(map(known.__getitem__, tokens), np.uint64, len(tokens))
    folded = np.zeros(count, np.uint64)
    for offset in range(n):
        folded = mix(folded * _FOLD + hashes[offset : offset + count])
    return folded


def ngram_hashes_of_many(texts: Sequence[Sequence[str]], n: int, known: WordHashes) -> tuple[np.ndarray, np.ndarray]:
    """(n-gram hashes, index of the text each is from) of many texts at once: for short texts far faster than one by one."""
    owners = np.repeat(np.arange(len(texts)), [len(tokens) for tokens in texts])
    hashes = ngram_hashes([token for tokens in texts for token in tokens], n, known)
    inside = owners[: len(hashes)] == owners[n - 1 :][: len(hashes)]  # n-grams that do not reach into the next text
    return hashes[inside], owners[: len(hashes)][inside]


def shingles(text: str, n: int, known: WordHashes) -> np.ndarray:
    """The set of ``n``-word shingles of a text as sorted unique uint64 hashes; empty when it has fewer than ``n`` words."""
    return np.unique(ngram_hashes(words(text), n, known))


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """True Jaccard similarity of two shingle sets (sorted, unique); 0.0 when both are empty."""
    both = len(np.intersect1d(left, right, assume_unique=True))
    union = len(left) + len(right) - both
    return both / union if union else 0.0


@dataclass(frozen=True)
class MinHash:
    """``bands * rows`` permutations h -> a*h + b mod 2^64 with odd a: bijections, so they add no collisions of their own.

    The shingle hashes are already well mixed, so the linear family behaves as min-wise independent in practice: a unit test holds
    the candidates against the curve 1 - (1 - s^rows)^bands.
    """

    bands: int
    rows: int
    seed: int

    def _permutations(self) -> tuple[np.ndarray, np.ndarray]:
        count = self.bands * self.rows
        steps = (np.arange(1, 2 * count + 1, dtype=np.uint64) + np.uint64(self.seed) * np.uint64(1 << 20)) * np.uint64(_GOLDEN)
        constants = mix(steps)
        return constants[:count] | np.uint64(1), constants[count:]

    def signatures(self, sets: Sequence[np.ndarray]) -> np.ndarray:
        """MinHash signatures of non-empty shingle sets: uint64 of shape (len(sets), bands * rows)."""
        multiply, add = self._permutations()
        signatures = np.empty((len(sets), len(multiply)), np.uint64)
        for first, last in _chunks([len(s) for s in sets]):
            joined = np.concatenate(sets[first:last])
            starts = np.cumsum([0] + [len(s) for s in sets[first : last - 1]])
            permuted = np.empty_like(joined)
            for index, (a, b) in enumerate(zip(multiply, add, strict=True)):
                np.multiply(joined, a, out=permuted)
                permuted += b
                signatures[first:last, index] = np.minimum.reduceat(permuted, starts)
        return signatures

    def band_hashes(self, signatures: np.ndarray) -> np.ndarray:
        """One hash per band of ``rows`` signature values: int64 of shape (documents, bands)."""
        banded = signatures.reshape(len(signatures), self.bands, self.rows)
        folded = np.zeros(banded.shape[:2], np.uint64)
        for row in range(self.rows):
            folded = mix(folded * _FOLD + banded[:, :, row])
        return folded.view(np.int64)


def _chunks(lengths: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Consecutive ranges [first, last) of sets with about _CHUNK hashes in all; a longer set is a range of its own."""
    first = total = 0
    for index, length in enumerate(lengths):
        if total and total + length > _CHUNK:
            yield first, index
            first, total = index, 0
        total += length
    if lengths:
        yield first, len(lengths)
