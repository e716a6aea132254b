"""Which benchmark items training text holds: the clean/contaminated split of a score. By tokens, and by the words decontamination left.

Training holds tokens, not words, so the 13-word rule of decontaminate cannot be checked on it. A window of 24 tokens (about 13 words of
English in a small BPE vocabulary; 16 tokens would be half a line of code, which unrelated programs share) of the item's context and right
answer, found anywhere in training, flags the item. Items shorter than a window cannot be flagged (sums, mostly). BPE may split the first
token of a window differently inside a document, so an overlap shows after a token or two; the windows in between are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

WINDOW = 24
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, golden ratio: a polynomial hash modulo 2**64
_FILTER_BITS = 22


def window_hashes(tokens_NT: np.ndarray) -> np.ndarray:
    """Hash of every WINDOW-token window of every row: uint64 (N, T - WINDOW + 1), or (N, 0) for shorter rows."""
    n, length = tokens_NT.shape
    if length < WINDOW:
        return np.empty((n, 0), dtype=np.uint64)
    values = tokens_NT.astype(np.uint64) + np.uint64(1)
    hashes = np.zeros((n, length - WINDOW + 1), dtype=np.uint64)
    for offset in range(WINDOW):
        hashes *= _MULTIPLIER
        hashes += values[:, offset : length - WINDOW + 1 + offset]
    return hashes ^ (hashes >> np.uint64(29))  # a product modulo 2**64 mixes upwards only; the filter below looks at low bits


def overlapping_items(items: Mapping[str, Sequence[int]], training: Iterable[np.ndarray]) -> set[str]:
    """Ids of the items (token ids of context and right answer) of which any window stands in ``training`` (arrays of equal-length rows)."""
    ids, hashes = [], []
    for tokens in items.values():
        found = window_hashes(np.asarray(tokens, dtype=np.int64)[None])[0]
        ids.append(np.full(len(found), len(ids), dtype=np.int64))
        hashes.append(found)
    names = list(items)
    wanted = np.concatenate(hashes) if hashes else np.empty(0, dtype=np.uint64)
    owner = np.concatenate(ids) if ids else np.empty(0, dtype=np.int64)
    known = np.unique(wanted)
    low = np.uint64((1 << _FILTER_BITS) - 1)
    may_be = np.zeros(1 << _FILTER_BITS, dtype=bool)  # lets nearly all training windows go without a search
    may_be[(known & low).astype(np.int64)] = True
    hit = np.zeros(len(known), dtype=bool)
    for tokens_NT in training:
        seen = window_hashes(tokens_NT).ravel()
        seen = seen[may_be[(seen & low).astype(np.int64)]]
        place = np.searchsorted(known, seen)
        inside = place < len(known)
        matched = place[inside][known[place[inside]] == seen[inside]]
        hit[matched] = True
    return {names[i] for i in np.unique(owner[np.isin(wanted, known[hit])])}


def left_in_training(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, bool]]:
    """(benchmark, item_id) -> rule -> whether the item is contaminated by what all days together still train on.

    ``rows``: of table contaminated_items, one per item, rule and day. An item no row names is clean by both rules.
    """
    left: dict[tuple[str, str], dict[str, set[int]]] = {}
    limits: dict[tuple[str, str, str], tuple[int, float]] = {}
    for row in rows:
        item, rule = (row["benchmark"], row["item_id"]), row["rule"]
        left.setdefault(item, {}).setdefault(rule, set()).update(row["left"])
        limits[*item, rule] = row["n_ngrams"], row["threshold"]
    found: dict[tuple[str, str], dict[str, bool]] = {}
    for item, by_rule in left.items():
        shares = {rule: len(places) / limits[*item, rule][0] for rule, places in by_rule.items()}
        found[item] = {rule: share > 0 and share >= limits[*item, rule][1] for rule, share in shares.items()}
    return found
