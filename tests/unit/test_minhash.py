"""MinHash kernels against brute force and theory."""

from __future__ import annotations

import random
import string

import numpy as np
import pytest

from jobs.minhash import MinHash, WordHashes, jaccard, ngram_hashes, ngram_hashes_of_many, shingles, text_hash, words

BANDS, ROWS = 14, 8
TEXT_HASH = -1993939474799311446
FIRST_BANDS = [3417026587802826816, -7260052397610401398, 7159134321337720461]


def random_words(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(count)]


def brute_shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    tokens = text.lower().split()
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def brute_jaccard(left: str, right: str) -> float:
    a, b = brute_shingles(left), brute_shingles(right)
    return len(a & b) / len(a | b)


def planted_pairs(similarity: float, count: int, size: int, seed: int) -> tuple[list[np.ndarray], float]:
    """Pairs of random sets (2i, 2i+1) that share exactly as many hashes as their Jaccard similarity says."""
    rng = np.random.default_rng(seed)
    shared = round(2 * size * similarity / (1 + similarity))
    sets = []
    for _ in range(count):
        hashes = rng.integers(0, 2**64, 2 * size - shared, dtype=np.uint64)
        sets += [np.sort(hashes[:size]), np.sort(hashes[size - shared :])]
    return sets, shared / (2 * size - shared)


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9])
def test_planted_pairs_become_candidates_as_often_as_the_banding_curve_says(similarity: float) -> None:
    count = 1500
    sets, true = planted_pairs(similarity, count, size=160, seed=int(100 * similarity))
    minhash = MinHash(BANDS, ROWS, seed=1)
    bands = minhash.band_hashes(minhash.signatures(sets))
    found = (bands[0::2] == bands[1::2]).any(axis=1).mean()
    expected = 1 - (1 - true**ROWS) ** BANDS
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / count) + 1e-3  # four standard errors


@pytest.mark.parametrize("shared", [128, 140, 146, 151, 157, 162])  # of 170 shingles: Jaccard .6, .7, .75, .8, .86, .91
def test_planted_copies_of_texts_become_candidates_as_often_as_the_banding_curve_says(shared: int) -> None:
    """From the text on: words to shingles to signatures to bands, against similarities counted from tuples of words."""
    count, minhash, known = 300, MinHash(BANDS, ROWS, seed=1), WordHashes()
    texts, expected = [], []
    for index in range(count):
        words_ = random_words(348 - shared - 4, 1000 * shared + index)
        left, right = " ".join(words_[:174]), " ".join(words_[: shared + 4] + words_[174:])
        texts += [left, right]
        expected.append(1 - (1 - brute_jaccard(left, right) ** ROWS) ** BANDS)
        assert brute_jaccard(left, right) == shared / (340 - shared)
    bands = minhash.band_hashes(minhash.signatures([shingles(text, 5, known) for text in texts]))
    found = (bands[0::2] == bands[1::2]).any(axis=1).sum()
    assert abs(found - sum(expected)) <= 4 * np.sqrt(sum(p * (1 - p) for p in expected)) + 1


@pytest.mark.parametrize("similarity", [0.2, 0.6, 0.9])
def test_the_share_of_equal_signature_values_estimates_the_similarity(similarity: float) -> None:
    sets, true = planted_pairs(similarity, 300, size=200, seed=7)
    signatures = MinHash(BANDS, ROWS, seed=1).signatures(sets)
    estimate = (signatures[0::2] == signatures[1::2]).mean()
    assert abs(estimate - true) < 0.01
    assert (signatures[0] == signatures[2]).sum() == 0, "sets that share nothing share no signature value"


def test_similarity_of_texts_equals_brute_force() -> None:
    rng = random.Random(3)
    for seed in range(40):
        left = random_words(rng.randint(5, 300), seed)
        right = [word if rng.random() > 0.05 else "other" for word in left] + random_words(rng.randint(0, 30), seed + 1000)
        a, b = " ".join(left), "\n\t".join(right).upper()
        found = jaccard(shingles(a, 5, WordHashes()), shingles(b, 5, WordHashes()))
        assert found == pytest.approx(brute_jaccard(a, b), abs=1e-12)


def test_repeated_shingles_count_once_and_order_within_a_shingle_matters() -> None:
    assert len(shingles("a b c d e " * 50, 5, WordHashes())) == 5
    assert jaccard(shingles("a b c d e", 5, WordHashes()), shingles("e d c b a", 5, WordHashes())) == 0.0


def test_a_text_shorter_than_a_shingle_has_none_and_resembles_nothing() -> None:
    empty = shingles("just four words here", 5, WordHashes())
    assert len(empty) == 0
    assert jaccard(empty, empty) == 0.0


def test_many_texts_at_once_give_the_hashes_of_each_alone() -> None:
    texts = [random_words(count, seed) for seed, count in enumerate([40, 0, 3, 13, 12, 14, 200])]
    hashes, owners = ngram_hashes_of_many(texts, 13, WordHashes())
    for index, tokens in enumerate(texts):
        assert hashes[owners == index].tolist() == ngram_hashes(tokens, 13, WordHashes()).tolist()
    assert len(ngram_hashes_of_many([], 13, WordHashes())[0]) == 0


def test_signatures_do_not_depend_on_what_is_hashed_together() -> None:
    minhash = MinHash(BANDS, ROWS, seed=1)
    rng = np.random.default_rng(0)
    sets = [np.unique(rng.integers(0, 2**64, size, dtype=np.uint64)) for size in (1, 40_000, 2, 33_000, 500, 31_000, 7)]  # around the chunk of 32,768
    together = minhash.signatures(sets)
    for index, one in enumerate(sets):
        assert (minhash.signatures([one])[0] == together[index]).all()
    assert minhash.signatures([]).shape == (0, BANDS * ROWS)
    assert minhash.band_hashes(minhash.signatures([])).shape == (0, BANDS)


def test_stored_hashes_never_change() -> None:
    """Fingerprints are kept for years: other values here would make every later day miss its duplicates."""
    text = "The quick brown fox jumps over the lazy dog"
    minhash = MinHash(BANDS, ROWS, seed=1)
    assert text_hash(text) == TEXT_HASH
    assert minhash.band_hashes(minhash.signatures([shingles(text, 5, WordHashes())]))[0, :3].tolist() == FIRST_BANDS


def test_seeds_give_unrelated_permutations() -> None:
    one = [shingles(" ".join(random_words(300, 1)), 5, WordHashes())]
    first, second = MinHash(BANDS, ROWS, seed=1).signatures(one), MinHash(BANDS, ROWS, seed=2).signatures(one)
    assert not set(first[0].tolist()) & set(second[0].tolist())


def test_the_text_hash_ignores_case_and_white_space_only() -> None:
    assert text_hash("Hello  World\n") == text_hash("hello world")
    assert text_hash("hello, world") != text_hash("hello world")
    assert words("A  b\u00a0C\n") == ["a", "b", "c"]
