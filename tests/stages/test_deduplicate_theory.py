"""What deduplication finds, against theory and brute force: planted copies of known similarity, every pair of a corpus compared exactly."""

from __future__ import annotations

import random
import string
from collections import Counter, defaultdict
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
from folder_tools import FolderTools
from test_deduplicate import CONFIG, MONDAY, deduplicated

from jobs.minhash import MinHash, WordHashes, shingles

SHINGLES = 170
LEVELS = {128: 0.60, 140: 0.70, 146: 0.75, 151: 0.80, 157: 0.86, 162: 0.91}  # shared shingles -> Jaccard similarity, rounded
PAIRS = 200


def random_words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9))) for _ in range(count)]


def planted() -> dict[str, str]:
    """PAIRS copies at every level ("151-007-a" and "-b" share 151 of 170 shingles each), and clusters that are no pairs."""
    rng = random.Random(5)
    texts = {}
    for shared in LEVELS:
        for index in range(PAIRS):
            head, one, two = (random_words(rng, n) for n in (shared + 4, SHINGLES - shared, SHINGLES - shared))
            texts[f"{shared}-{index:03d}-a"], texts[f"{shared}-{index:03d}-b"] = " ".join(head + one), " ".join(head + two)
    for cluster in range(40):
        base = random_words(rng, SHINGLES + 4)
        for version in range(8):
            for _ in range(rng.randint(0, 4)):
                base[rng.randrange(len(base))] = random_words(rng, 1)[0]
            texts[f"cluster-{cluster:02d}-{version}"] = " ".join(base)
    return texts


def similar_pairs(texts: dict[str, str], least: float) -> dict[tuple[str, str], float]:
    """Every pair of at least this Jaccard similarity, by counting the tuples of five words that any two texts share."""
    sets = {name: {tuple(words[i : i + 5]) for i in range(len(words) - 4)} for name, words in ((n, t.lower().split()) for n, t in texts.items())}
    holders = defaultdict(list)
    for name in sorted(sets):
        for shingle in sets[name]:
            holders[shingle].append(name)
    shared = Counter(pair for names in holders.values() for pair in combinations(names, 2))
    found = {(a, b): both / (len(sets[a]) + len(sets[b]) - both) for (a, b), both in shared.items()}
    return {pair: similarity for pair, similarity in found.items() if similarity >= least}


def chance(similarity: float) -> float:
    """That a pair shares a band: the LSH curve."""
    return 1 - (1 - similarity**CONFIG.rows) ** CONFIG.bands


@pytest.fixture(scope="module")
def day(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    texts = planted()
    found = deduplicated(FolderTools(tmp_path_factory.mktemp("theory"), spark), texts, MONDAY)
    similar = similar_pairs(texts, CONFIG.min_jaccard)
    return SimpleNamespace(texts=texts, similar=similar, dropped={r["doc_id"]: r for r in found.duplicates}, kept={r["doc_id"] for r in found.unique_documents})


@pytest.mark.parametrize("shared", LEVELS)
def test_planted_copies_are_dropped_as_often_as_the_banding_curve_says(day: Any, shared: int) -> None:
    true = shared / (2 * SHINGLES - shared)
    assert round(true, 2) == LEVELS[shared]
    expected = PAIRS * chance(true) if true >= CONFIG.min_jaccard else 0
    dropped = sum(name.startswith(f"{shared}-") for name in day.dropped)
    assert abs(dropped - expected) <= 4 * (expected * (1 - expected / PAIRS)) ** 0.5, f"{dropped} of {PAIRS}, expected {expected:.1f}"


def test_every_dropped_document_is_as_similar_to_the_kept_one_as_recorded(day: Any) -> None:
    assert len(day.dropped) > 600
    for name, row in day.dropped.items():
        assert row["kept_doc_id"] in day.kept
        assert row["jaccard"] == pytest.approx(day.similar[tuple(sorted((name, row["kept_doc_id"])))], abs=1e-12)


def test_similar_documents_are_both_kept_only_where_no_band_met_and_as_seldom_as_expected(day: Any) -> None:
    minhash, known = MinHash(CONFIG.bands, CONFIG.rows, CONFIG.seed), WordHashes()
    missed = [pair for pair in day.similar if day.kept.issuperset(pair)]
    for pair in missed:
        one, two = minhash.band_hashes(minhash.signatures([shingles(day.texts[name], CONFIG.shingle_words, known) for name in pair]))
        assert not (one == two).any(), f"{pair} of similarity {day.similar[pair]} share a band and are both kept"
    misses = [1 - chance(day.similar[pair]) for pair in day.similar if not pair[0].startswith("cluster")]
    planted_missed = sum(not pair[0].startswith("cluster") for pair in missed)
    assert abs(planted_missed - sum(misses)) <= 4 * sum(p * (1 - p) for p in misses) ** 0.5
    assert len(missed) - planted_missed <= sum(1 - chance(s) for pair, s in day.similar.items() if pair[0].startswith("cluster"))
