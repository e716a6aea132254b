"""Decontamination of a day by brute force, written apart from the product: sets of word tuples, characters marked one by one, no hashes, no Spark."""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Gram = tuple[str, ...]


@dataclass
class Day:
    """``training``: doc_id -> its pieces; ``contamination``: (doc_id, benchmark, item_id) -> (rule, action, removed characters); ``items``: by
    (benchmark, item_id, rule) the columns of contaminated_items that the oracle knows."""

    training: dict[str, list[str]] = field(default_factory=dict)
    contamination: dict[tuple[str, str, str], tuple[str, str, int]] = field(default_factory=dict)
    items: dict[tuple[str, str, str], dict[str, object]] = field(default_factory=dict)


def words_of(text: str) -> list[tuple[str, int, int]]:
    """(word, start, end) by looking at every character."""
    found, chunk, start = [], "", 0
    for at, char in enumerate([*text, " "]):
        if not char.isspace():
            chunk, start = chunk + char, start if chunk else at
            continue
        word = "".join(c for c in chunk.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
        if word:
            found.append((word, start, at))
        chunk = ""
    return found


def grams_of(text: str, n: int) -> list[tuple[Gram, int, int]]:
    """(n-gram, where it starts, where it ends in the text), in order."""
    words = words_of(text)
    return [(tuple(w for w, _, _ in words[i : i + n]), words[i][1], words[i + n - 1][2]) for i in range(len(words) - n + 1)]


def pieces_of(text: str, spans: list[tuple[int, int]], around: int, least: int, most: int) -> list[str]:
    """What remains when every character near a span is struck out."""
    struck = [any(start - around <= at < end + around for start, end in spans) for at in range(len(text))]
    pieces, last = [], True
    for char, gone in zip(text, struck, strict=True):
        if not gone:
            pieces = [*pieces, char] if last else [*pieces[:-1], pieces[-1] + char]
        last = gone
    return [] if len(pieces) > most else [piece for piece in pieces if len(piece) >= least]


def decontaminated(
    documents: Mapping[str, str], held_out: set[str], items: Mapping[tuple[str, str], list[str]], rule_of: Callable[[str], str], *,
    ngram_words: int, share_words: int, share: float, max_documents: int, action_of: Callable[[str], str], around: int, least: int, most: int,
) -> Day:  # fmt: skip
    """``items``: the texts of every item, the running text first."""
    lengths, day = {"ngram": ngram_words, "share": share_words}, Day()
    of_document = {(d, rule): {g for g, _, _ in grams_of(text, n)} for d, text in documents.items() for rule, n in lengths.items()}
    seen = Counter(gram for d in documents for gram in of_document[d, "ngram"])
    rare = {gram for gram, count in seen.items() if count <= max_documents}
    trained = [d for d in documents if d not in held_out]
    found: dict[tuple[str, str, str], tuple[list[Gram], list[str]]] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    payers: dict[tuple[str, str, str], str] = {}
    for (benchmark, item_id), texts in items.items():
        for rule, n in lengths.items():
            used = texts if rule == "ngram" else texts[:1]
            grams = list(dict.fromkeys(gram for text in used for gram, _, _ in grams_of(text, n)))
            hits = {d: [g for g in grams if g in of_document[d, rule] and (rule == "share" or g in rare)] for d in trained}
            alone = [d for d in trained if hits[d] and (rule == "ngram" or len(hits[d]) >= share * len(grams) - 1e-9)]
            found[benchmark, item_id, rule] = grams, alone
            if rule_of(benchmark) == rule and alone and (rule == "ngram" or len(alone) <= max_documents):
                for d in alone:
                    payers[d, benchmark, item_id] = rule
                    spans.setdefault(d, []).extend((s, e) for g, s, e in grams_of(documents[d], n) if g in hits[d])
    for d, text in documents.items():
        if d not in spans:
            day.training[d] = [text]
        elif all(action_of(benchmark) == "cut_passage" for payer, benchmark, _ in payers if payer == d) and (
            pieces := pieces_of(text, spans[d], around, least, most)
        ):
            day.training[d] = pieces
    for (d, benchmark, item_id), rule in payers.items():
        kept = sum(map(len, day.training.get(d, [])))
        done = "cut_passage" if d in day.training else "drop_document"
        day.contamination[d, benchmark, item_id] = rule, done, len(documents[d]) - kept
    for (benchmark, item_id, rule), (grams, alone) in found.items():
        held = {g for d in trained for g in of_document[d, rule]} & set(grams)
        if not held or (rule == "ngram" and not alone):
            continue
        remaining = {g for d, parts in day.training.items() if d not in held_out for part in parts for g, _, _ in grams_of(part, lengths[rule])}
        left = [i for i, g in enumerate(grams) if g in remaining and (rule == "share" or g in rare)]
        limit = 0.0 if rule == "ngram" else share
        acted = (d for d, b, i in payers if (b, i) == (benchmark, item_id))
        day.items[benchmark, item_id, rule] = {
            "acts": rule_of(benchmark) == rule, "n_ngrams": len(grams), "share": len(held) / len(grams), "documents": len(alone), "left": left,
            "contaminated": rule == "ngram" or len(held) / len(grams) >= limit - 1e-9,
            "still_trains": bool(left) and len(left) / len(grams) >= limit - 1e-9,
            "action": action_of(benchmark) if rule_of(benchmark) == rule and any(acted) else "none",
        }  # fmt: skip
    return day
