"""What contaminates: the words of a text, the n-grams of benchmark items, which items a text holds, and cutting a passage out. No Spark.

Two rules (infra/decisions/0014). ``ngram`` (GPT-3, Brown et al. 2020, appendix C): one n-gram of any text of the item. ``share`` (PaLM,
Chowdhery et al. 2022, section 8): at least a share of the different n-grams of the item's context and right answer as one running text.
Words are lower case, without punctuation, split at white space; a text shorter than an n-gram has none and cannot be found.
Change here: what a rule means. Not here: lengths and thresholds (DecontaminateConfig in jobs/config.py), the tables (jobs/stages/decontaminate.py).
"""

from __future__ import annotations

import difflib
import re
import string
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

import numpy as np

from jobs.config import DecontaminateConfig
from jobs.contract import MoelineError
from jobs.minhash import WordHashes, ngram_hashes, ngram_hashes_of_many

_ITEM_TEXTS = 2000  # hashed at once
_CHUNK = re.compile(r"\S+")


class Punctuation(dict[int, str | None]):
    """Table for str.translate that deletes punctuation (Unicode categories P*) and the other ASCII marks, worked out as they are met."""

    def __missing__(self, code: int) -> str | None:
        mark = chr(code) in string.punctuation or unicodedata.category(chr(code)).startswith("P")
        self[code] = made = None if mark else chr(code)
        return made


def ngram_tokens(text: str, table: Punctuation | None = None) -> list[str]:
    """Words as decontamination compares them: lower case, punctuation removed, split at white space."""
    return text.lower().translate(Punctuation() if table is None else table).split()


def tokens_at(text: str, table: Punctuation | None = None) -> tuple[list[str], np.ndarray]:
    """(words as ngram_tokens gives them, int64 (words, 2): where each starts and ends in ``text``, its punctuation included)."""
    table = Punctuation() if table is None else table
    words, places = [], []
    for chunk in _CHUNK.finditer(text):
        if word := chunk.group().lower().translate(table):
            words.append(word)
            places.append(chunk.span())
    return words, np.array(places, np.int64).reshape(-1, 2)


def check_names(config: DecontaminateConfig, benchmarks: Collection[str]) -> None:
    """Raises MoelineError when a rule or an action names a benchmark that is not in use: it would silently never act."""
    for pattern, asked in (*((name, f"rule {rule}") for name, rule in config.rules), *((name, f"action {action}") for name, action in config.actions)):
        if not any(fnmatchcase(name, pattern) for name in benchmarks):
            nearest = difflib.get_close_matches(pattern, sorted(benchmarks), n=1, cutoff=0.0)
            hint = f"; the closest one in use is {nearest[0]!r}" if nearest else "; none is in use"
            raise MoelineError(f"Decontamination is asked to use {asked} for {pattern!r}, which is no benchmark of suite {config.suite.name}{hint}.")


def _batched(texts: Iterable[tuple[str, str, str]], size: int) -> Iterator[list[tuple[str, str, str]]]:
    waiting = iter(texts)
    while part := list(islice(waiting, size)):
        yield part


def _firsts(texts: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """The first text of every item."""
    seen: set[tuple[str, str]] = set()
    for text in texts:
        if text[:2] not in seen:
            seen.add(text[:2])
            yield text


class ItemNgrams:
    """The n-grams of every benchmark item's texts: 16 bytes each, their words only on demand."""

    def __init__(self, texts: Iterable[tuple[str, str, str]], n: int, *, first_only: bool = False) -> None:
        """``texts``: (benchmark, item_id, text), several per item allowed; ``first_only``: of those only the first (tasks.item_texts: the running text)."""
        table = Punctuation()
        self.n = n
        self._texts: list[tuple[str, str, str]] = []
        hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for part in _batched(_firsts(texts) if first_only else texts, _ITEM_TEXTS):
            tokens = [ngram_tokens(text, table) for _, _, text in part]
            long = [index for index, found in enumerate(tokens) if len(found) >= n]
            found, owner = ngram_hashes_of_many([tokens[index] for index in long], n, WordHashes())
            hashes.append(found)
            owners.append(owner + len(self._texts))
            self._texts += [part[index] for index in long]
        self._hashes, self._owners = np.concatenate(hashes), np.concatenate(owners).astype(np.int32)
        self._number_items()

    def _number_items(self) -> None:
        """``items`` in order, and of every item each different n-gram once, in the order of its texts."""
        numbers: dict[tuple[str, str], int] = {}
        item_of_text = np.array([numbers.setdefault(text[:2], len(numbers)) for text in self._texts], np.int32)
        self._number, self.items = numbers, list(numbers)
        owner = item_of_text[self._owners] if len(self._owners) else np.empty(0, np.int32)
        order = np.lexsort((np.arange(len(owner)), self._hashes, owner))
        new = np.ones(len(order), bool)
        new[1:] = (np.diff(owner[order]) != 0) | (np.diff(self._hashes[order]) != 0)
        first = order[new]
        first = first[np.lexsort((first, owner[first]))]
        self._item, self._ngram = owner[first], self._hashes[first]
        self.counts = np.bincount(self._item, minlength=len(self.items))
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])

    def hashes(self) -> np.ndarray:
        """Sorted unique uint64 hashes of all n-grams."""
        return np.unique(self._hashes)

    def items_of(self, ngrams: Iterable[str]) -> list[tuple[str, str, str]]:
        """Sorted (n-gram, benchmark, item_id) for every item that really holds one of the ``ngrams`` (equal words, not only equal hashes)."""
        wanted = set(ngrams)
        known = WordHashes()
        hits = np.unique(np.array([int(ngram_hashes(ngram.split(" "), self.n, known)[0]) for ngram in wanted], np.uint64))
        found = set()
        for owner in np.unique(self._owners[np.isin(self._hashes, hits)]).tolist():
            benchmark, item_id, text = self._texts[owner]
            words = ngram_tokens(text)
            here = {" ".join(words[i : i + self.n]) for i in range(len(words) - self.n + 1)}
            found |= {(ngram, benchmark, item_id) for ngram in here & wanted}
        return sorted(found)

    def places(self, found: np.ndarray) -> dict[tuple[str, str], list[int]]:
        """Item -> which of its different n-grams (0.., in its own order) are among the hashes ``found``; items with none are left out."""
        at = np.flatnonzero(np.isin(self._ngram, found))
        items, firsts = np.unique(self._item[at], return_index=True)
        parts = np.split(at, firsts[1:]) if len(items) else []
        return {self.items[item]: (part - self._starts[item]).tolist() for item, part in zip(items.tolist(), parts, strict=True)}

    def reached(self, found: np.ndarray, share: float) -> list[tuple[int, str, str, int]]:
        """(hash as int64, benchmark, item_id, n-grams of the item) of every n-gram of the items of which ``found`` holds at least ``share``."""
        held = np.bincount(self._item[np.isin(self._ngram, found)], minlength=len(self.items))
        rows = []
        for item in np.flatnonzero(held / np.maximum(self.counts, 1) >= share).tolist():
            mine = self._ngram[self._starts[item] : self._starts[item + 1]].view(np.int64).tolist()
            rows += [(value, *self.items[item], len(mine)) for value in mine]
        return rows

    def count(self, item: tuple[str, str]) -> int:
        """How many different n-grams an item has."""
        return int(self.counts[self._number[item]])


def is_among(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which of ``found`` are in the sorted ``wanted``: a search each, where np.isin would sort all of ``wanted`` again for every text."""
    if not len(wanted):
        return np.zeros(len(found), bool)
    places = np.searchsorted(wanted, found)
    return wanted[np.minimum(places, len(wanted) - 1)] == found


def matched_spans(text: str, wanted: Iterable[tuple[int, np.ndarray]], known: WordHashes, table: Punctuation) -> list[tuple[int, int]]:
    """Where in ``text`` (characters) n-grams stand: ``wanted``: their number of words and their uint64 hashes. Every occurrence counts."""
    words, places = tokens_at(text, table)
    spans: list[tuple[int, int]] = []
    for n, hashes in wanted:
        at = np.flatnonzero(np.isin(ngram_hashes(words, n, known), hashes))
        spans += zip(places[at, 0].tolist(), places[at + n - 1, 1].tolist(), strict=True)
    return spans


def kept_pieces(length: int, spans: Iterable[tuple[int, int]], *, around: int, least: int, most: int) -> list[tuple[int, int]]:
    """What is left of a text of ``length`` characters without the ``spans`` and ``around`` characters on each side of them (GPT-3, appendix C).

    Pieces are counted before short ones go: a text that falls into more than ``most`` leaves nothing. Then pieces under ``least`` go.
    """
    pieces, end = [], 0
    for start, stop in sorted((max(0, start - around), min(length, stop + around)) for start, stop in spans):
        if start > end:
            pieces.append((end, start))
        end = max(end, stop)
    if end < length:
        pieces.append((end, length))
    return [] if len(pieces) > most else [(start, stop) for start, stop in pieces if stop - start >= least]


def split_pieces(text: str, starts: Sequence[int] | None) -> list[str]:
    """The pieces of a document of training_documents; without ``starts`` it is one. Pieces are parted by one character."""
    if starts is None:
        return [text]
    return [text[start : end - 1] for start, end in zip(starts, [*starts[1:], len(text) + 1], strict=True)]


def item_rows(
    config: DecontaminateConfig, rule: str, items: ItemNgrams, *, held: np.ndarray, left: np.ndarray, documents: Mapping[tuple[str, str], int],
    matched: Collection[tuple[str, str]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of ``contaminated_items`` of one rule, without the interval: every item of which an n-gram that can count was found.

    ``held``, ``left``: hashes in the day's training documents and in what is left of them (ngram: ``left`` without boilerplate); ``matched``:
    the items that the rule ngram finds; ``documents``: how many contaminate an item alone.
    """
    remaining, threshold = items.places(left), config.share if rule == "share" else 0.0
    rows = []
    for item, found in sorted(items.places(held).items()):
        n, alone, still = items.count(item), documents.get(item, 0), remaining.get(item, [])
        if rule == "ngram" and item not in matched:
            continue
        acts = config.rule_of(item[0]) == rule
        rows.append(
            {
                "benchmark": item[0], "item_id": item[1], "rule": rule, "acts": acts, "n_ngrams": n, "share": len(found) / n, "threshold": threshold,
                "contaminated": rule == "ngram" or len(found) / n >= threshold, "documents": alone,
                "action": config.action_of(item[0]) if acts and is_acted_on(config, rule, alone) else "none",
                "still_trains": bool(still) and len(still) / n >= threshold, "left": still,
            }
        )  # fmt: skip
    return rows


def is_acted_on(config: DecontaminateConfig, rule: str, documents: int) -> bool:
    """Whether the ``documents`` that contaminate an item alone lose their place: by ``share``, an item that too many hold is boilerplate."""
    return documents > 0 and (rule == "ngram" or documents <= config.max_documents)
