"""Signatures, candidate pairs and clusters of MinHash deduplication against datatrove itself, on generated texts and on texts of the installed
distributions.

Run: python tests/oracles/datatrove_minhash.py FOLDER   (FOLDER: a site-packages folder; in an environment with datatrove==0.10.1 and spacy)
Not part of the test suite: datatrove is no dependency. Both read the same words (datatrove's own, joined by blanks, where the texts are
real), take 5-word shingles, 14 bands of 8 rows, and have nothing else in common: other hashes, other permutations, other code. So their
candidates are two draws of the same lottery, and both are held against the truth: similarities counted from tuples of words. Ends with
status 1 where an estimate or a number of candidates is farther than four standard errors from what theory says for it, where a cluster
that leaves nothing to chance (similar pairs above .9, all others below .3) differs, or where two kept documents of moeline share a band
and are similar. What moeline's verification changes against datatrove's connected components is counted.
"""

from __future__ import annotations

import random
import string
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from datatrove.utils.binaryio import read_tuples_from_file
from datatrove.utils.logging import logger
from datatrove.utils.text import simplify_text
from datatrove_rules import texts as installed_texts

from jobs.minhash import MinHash, WordHashes, jaccard, shingles
from jobs.stars import decide

BANDS, ROWS, WORDS, MIN_JACCARD, DAY = 14, 8, 5, 0.7, "2026-11-01"
Pairs = dict[tuple[int, int], float]


def true_similarities(texts: list[str]) -> Pairs:
    """Jaccard similarity of every pair that shares five words in a row."""
    sets = [{tuple(w[i : i + WORDS]) for i in range(len(w) - WORDS + 1)} for w in (text.split() for text in texts)]
    holders = defaultdict(list)
    for index, found in enumerate(sets):
        for shingle in found:
            holders[shingle].append(index)
    shared = Counter(pair for names in holders.values() if len(names) <= 50 for pair in combinations(names, 2))  # not what a whole corpus shares
    exact = {pair: len(sets[pair[0]] & sets[pair[1]]) for pair in shared}
    return {(a, b): both / (len(sets[a]) + len(sets[b]) - both) for (a, b), both in exact.items()}


def theirs(texts: list[str]) -> tuple[np.ndarray, set[tuple[int, int]], list[int]]:
    """datatrove: signatures (documents, 112), pairs that share a bucket, and the cluster of every document after its steps 1 to 3."""
    config = MinhashConfig(n_grams=WORDS, num_buckets=BANDS, hashes_per_bucket=ROWS)
    with tempfile.TemporaryDirectory() as folder:
        step = MinhashDedupSignature(f"{folder}/signatures", config)
        step.run((Document(text=text, id=str(index)) for index, text in enumerate(texts)), rank=0)
        for rank in range(BANDS):
            MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config).run(None, rank, BANDS)
        MinhashDedupCluster(f"{folder}/buckets", f"{folder}/clusters", config, save_cluster_id=True).run(None, 0, 1)
        clusters = [-1 - index for index in range(len(texts))]  # alone
        for file in Path(folder, "clusters").glob("*.clusters"):
            with open(file, "rb") as handle:
                for document, cluster in read_tuples_from_file(handle, "2I", lines_to_buffer=5):
                    clusters[document] = cluster
    signatures = np.array([np.concatenate(step.get_signature(step.get_shingles(text))) for text in texts])
    return signatures, met(signatures.reshape(len(texts), BANDS, ROWS)), clusters


def ours(texts: list[str]) -> tuple[np.ndarray, set[tuple[int, int]]]:
    known, minhash = WordHashes(), MinHash(BANDS, ROWS, seed=1)
    signatures = minhash.signatures([shingles(text, WORDS, known) for text in texts])
    return signatures, met(minhash.band_hashes(signatures)[:, :, None])


def met(bands: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of documents that share a band; ``bands``: (documents, bands, values)."""
    buckets = defaultdict(list)
    for document, rows in enumerate(bands.tolist()):
        for band, values in enumerate(rows):
            buckets[band, tuple(values)].append(document)
    return {pair for bucket in buckets.values() for pair in combinations(bucket, 2)}


def components(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for a, b in pairs:
        parent[root(a)] = root(b)
    return [root(node) for node in range(count)]


def partition(clusters: list[int]) -> set[frozenset[int]]:
    found = defaultdict(list)
    for document, cluster in enumerate(clusters):
        found[cluster].append(document)
    return {frozenset(members) for members in found.values()}


def dropped(texts: list[str], pairs: set[tuple[int, int]]) -> dict[int, int]:
    """Documents moeline drops for which other one: verified pairs, longest first, decided as stars."""
    known = WordHashes()
    order = [(-len(texts[index].encode()), index) for index in range(len(texts))]
    rows = []
    for pair in pairs:
        first, last = sorted(pair, key=order.__getitem__)
        similarity = jaccard(*(shingles(texts[index], WORDS, known) for index in pair))
        if similarity >= MIN_JACCARD:
            rows.append((DAY, f"{first:06d}", f"{last:06d}", similarity, similarity))
    names = ("kept_interval", "kept_doc_id", "doc_id", "jaccard", "containment")
    schema = pa.schema([(name, pa.string() if place < 3 else pa.float64()) for place, name in enumerate(names)])
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema)
    return {int(row["doc_id"]): int(row["kept_doc_id"]) for row in decide(table, DAY).to_pylist()}


def held_against_theory(name: str, signatures: np.ndarray, candidates: set[tuple[int, int]], true: Pairs) -> int:
    """Prints and counts what is farther than four standard errors from theory."""
    wrong = 0
    for low in (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9):
        pairs = [pair for pair, similarity in true.items() if low <= similarity < low + (0.1 if low < 0.7 else 0.05) - 1e-9]
        if len(pairs) < 30:
            continue
        similarity = np.array([true[pair] for pair in pairs])
        estimate = np.array([(signatures[a] == signatures[b]).mean() for a, b in pairs])
        chance = 1 - (1 - similarity**ROWS) ** BANDS
        found, expected = sum(pair in candidates for pair in pairs), chance.sum()
        off_estimate = abs((estimate - similarity).mean()) / (np.sqrt((similarity * (1 - similarity)).sum() / (BANDS * ROWS)) / len(pairs))
        off_found = abs(found - expected) / max(np.sqrt((chance * (1 - chance)).sum()), 1)
        spread = np.sqrt(np.mean((estimate - similarity) ** 2))
        theory = np.sqrt(np.mean(similarity * (1 - similarity)) / (BANDS * ROWS))
        print(f"  {name} J {low:.2f}: {len(pairs)} pairs, estimate off by {(estimate - similarity).mean():+.4f} ({off_estimate:.1f} s.e.),", end=" ")
        print(f"rms {spread:.4f} (theory {theory:.4f}); candidates {found}, expected {expected:.1f} ({off_found:.1f} s.e.)")
        wrong += (off_estimate > 4) + (off_found > 4)
    return wrong


def compare(title: str, texts: list[str], *, independent: bool) -> int:
    """``independent``: no document is in two similar pairs, so that standard errors of pairs hold; else only counts are printed."""
    true = true_similarities(texts)
    their_signatures, their_candidates, their_clusters = theirs(texts)
    our_signatures, our_candidates = ours(texts)
    print(f"{title}: {len(texts)} documents, {sum(s >= MIN_JACCARD for s in true.values())} pairs of similarity {MIN_JACCARD} or more")
    wrong = [held_against_theory(*args, true) for args in (("datatrove", their_signatures, their_candidates), ("moeline  ", our_signatures, our_candidates))]
    theirs_removed = len(texts) - len(partition(their_clusters))
    unverified = len(texts) - len(partition(components(len(texts), our_candidates)))
    stars = dropped(texts, our_candidates)
    grouped = [members for members in partition(their_clusters) if len(members) > 1]
    false = sum(max(true.get(tuple(sorted((m, o))), 0.0) for o in members if o != m) < MIN_JACCARD for members in grouped for m in members)
    far = sum(true.get(tuple(sorted(pair)), 0.0) < MIN_JACCARD for members in grouped for pair in combinations(members, 2))
    print(f"  removed: datatrove {theirs_removed}, moeline's candidates joined in the same way {unverified}, moeline (verified, stars) {len(stars)}")
    print(f"  datatrove's clusters hold {far} pairs below {MIN_JACCARD}, {false} documents without any partner of {MIN_JACCARD}")
    bad = sum(true.get(tuple(sorted(pair)), 0.0) < MIN_JACCARD for pair in stars.items())
    left = sum(true.get(pair, 0.0) >= MIN_JACCARD and not stars.keys() & set(pair) for pair in our_candidates)
    print(f"  moeline: {bad} dropped for a document below {MIN_JACCARD}, {left} candidate pairs of {MIN_JACCARD} or more both kept")
    return bad + left + (sum(wrong) if independent else 0)


def words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9))) for _ in range(count)]


def known_clusters(rng: random.Random) -> int:
    """Windows of one text as in datatrove's own test (six clusters), scaled so that pairs are above .9 or below .3, 20 times."""
    wrong = 0
    for _ in range(20):
        text, layout = words(rng, 6000), [[0, 2, 5], [800, 801, 802, 804, 806], [1500, 1502], [2500], [3500, 3503, 3505, 3506], [5000]]
        starts = [start for cluster in layout for start in cluster]
        texts = [" ".join(text[start : start + 300]) for start in starts]
        expected = partition([place for place, cluster in enumerate(layout) for _ in cluster])
        _, _, their_clusters = theirs(texts)
        _, candidates = ours(texts)
        stars = dropped(texts, candidates)
        ours_found = partition([stars.get(index, index) for index in range(len(texts))])
        wrong += (partition(their_clusters) != expected) + (ours_found != expected)
    print(f"six known clusters, 20 texts: {wrong} partitions are not the known one (datatrove and moeline together)")
    return wrong


def planted(rng: random.Random, count: int) -> list[str]:
    """``count`` pairs of copies of every similarity from .3 to .95, no document in two of them."""
    texts = []
    for index in range(count):
        similarity = 0.3 + 0.65 * index / count
        shared = round(340 * similarity / (1 + similarity))
        head, one, two = (words(rng, n) for n in (shared + 4, 170 - shared, 170 - shared))
        texts += [" ".join(head + one), " ".join(head + two)]
    return texts


def real_copies(folder: Path, rng: random.Random, step: MinhashDedupSignature) -> tuple[list[str], list[str]]:
    """(texts of the distributions as they are, every one of them once with a copy in which words were changed at random)"""
    found = [step.word_tokenizer.word_tokenize(simplify_text(text, step.config.norm_config)) for text in installed_texts(folder)]
    found = [tokens for tokens in found if len(tokens) >= 100][:1500]
    once = {tuple(tokens[i : i + WORDS]): index for index, tokens in enumerate(found) for i in range(0, len(tokens) - WORDS, 50)}
    copies = []
    for index in sorted(set(once.values())):
        rate, tokens = rng.uniform(0.002, 0.08), found[index]
        copies += [" ".join(tokens), " ".join(words(rng, 1)[0] if rng.random() < rate else token for token in tokens)]
    return [" ".join(tokens) for tokens in found], copies


def main(folder: Path) -> int:
    logger.remove()
    rng = random.Random(11)
    wrong = known_clusters(rng)
    wrong += compare("generated copies", planted(rng, 1500), independent=True)
    with tempfile.TemporaryDirectory() as scratch:
        natural, copies = real_copies(folder, rng, MinhashDedupSignature(scratch, MinhashConfig()))
    wrong += compare("installed texts and changed copies", copies, independent=False)
    wrong += compare("installed texts as they are", natural, independent=False)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
