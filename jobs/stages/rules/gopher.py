"""Gopher's quality and repetition rules (Rae et al. 2021, arXiv 2112.11446, section A.1.1 and table A1).

The paper leaves the measures open; datatrove's are used (they made FineWeb), with words as in ``features``. Named differences
between implementations: stop words are counted as *distinct* ones, case-sensitive (dolma and Curator count occurrences); bullets
are ``•`` and ``-``; ``#`` and ellipses are counted apart, every occurrence (dolma pools them); a repeated n-gram counts without
its first copy and without spaces, over all characters of the text (dolma counts all copies). Corrected here: punctuation
marks are no words without letters (datatrove counts them in this one rule and not in its word count and length, so that it drops
seven of eight texts of technical documentation; the paper, dolma and Curator have no such words); blank lines at the ends of a
text are no lines (datatrove counts two such blanks as one duplicate line).
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.stages.rules.features import Features, share
from jobs.stages.rules.ngrams import Ngrams
from jobs.stages.rules.rule import Rule

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")


def words(features: Features) -> float:
    """Words that are not punctuation."""
    return features.n_plain_words


def mean_word_length(features: Features) -> float:
    """Mean characters of the words that are not punctuation."""
    return share(sum(len(word) * n for word, n in features.plain_word_counts.items()), features.n_plain_words)


def hashes_per_word(features: Features) -> float:
    return share(features.text.count("#"), len(features.words))


def ellipses_per_word(features: Features) -> float:
    return share(features.text.count("...") + features.text.count("…"), len(features.words))


def bullet_line_share(features: Features) -> float:
    return share(sum(line.lstrip().startswith(_BULLETS) for line in features.lines), len(features.lines))


def ellipsis_line_share(features: Features) -> float:
    if not any(mark in features.text for mark in _ELLIPSES):  # nearly all texts
        return 0.0
    return share(sum(line.rstrip().endswith(_ELLIPSES) for line in features.lines), len(features.lines))


def letter_word_share(features: Features) -> float:
    """Share of the words that are not punctuation with at least one letter."""
    return share(features.n_words_with_letter, features.n_plain_words)


def stop_words(features: Features) -> float:
    """How many of Gopher's eight English stop words occur at all."""
    return len(STOP_WORDS & features.word_counts.keys())


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts repeat an earlier one, and the characters of those repeats."""
    distinct = set(parts)
    if len(distinct) == len(parts):
        return 0, 0
    return len(parts) - len(distinct), sum(map(len, parts)) - sum(map(len, distinct))


def _line_repeats(features: Features) -> tuple[int, int, int]:
    """Lines that are not empty, how many of them repeat an earlier one, and the characters of those."""

    def counted() -> tuple[int, int, int]:
        lines = [line for line in features.text.split("\n") if line]
        return len(lines), *duplicates(lines)

    return features.once("line_repeats", counted)


def _paragraph_repeats(features: Features) -> tuple[int, int]:
    return features.once("paragraph_repeats", lambda: duplicates(features.paragraphs))


def duplicate_line_share(features: Features) -> float:
    n_lines, n_repeats, _ = _line_repeats(features)
    return share(n_repeats, n_lines)


def duplicate_line_char_share(features: Features) -> float:
    return share(_line_repeats(features)[2], len(features.text))


def duplicate_paragraph_share(features: Features) -> float:
    return share(_paragraph_repeats(features)[0], len(features.paragraphs))


def duplicate_paragraph_char_share(features: Features) -> float:
    return share(_paragraph_repeats(features)[1], len(features.text))


def _ngrams(features: Features) -> Ngrams:
    return features.once("ngrams", lambda: Ngrams(features.words, features.word_counts))


def top_ngram_char_share(features: Features, n: int) -> float:
    """Characters (inner spaces included) in all copies of the most frequent n-gram, the first one among equals, over the text's."""
    if len(features.words) < n:
        return 0.0
    found = _ngrams(features).of(n)
    place, count = found.most_frequent() if len(found.places) else (0, 1)  # nothing repeats: the first one is the most frequent
    return share((_ngrams(features).n_chars(place, n) + n - 1) * count, len(features.text))


def duplicate_ngram_char_share(features: Features, n: int) -> float:
    """Characters of n-grams that repeat an earlier one, overlaps counted once, over the text's."""
    return share(_ngrams(features).n_chars(_ngrams(features).of(n).repeats(), n), len(features.text))


def duplicate_ngram_char_shares(features: Features, sizes: Sequence[int]) -> dict[int, float]:
    """The same for several n."""
    return {n: duplicate_ngram_char_share(features, n) for n in sizes}


def quality_rules(
    *,
    min_words: int = 50, max_words: int = 100_000,
    min_mean_word_length: float = 3, max_mean_word_length: float = 10,
    max_symbols_per_word: float = 0.1,  # of "#" and of ellipses, each
    max_bullet_lines: float = 0.9,
    max_ellipsis_lines: float = 0.3,
    min_letter_words: float = 0.8,
    min_stop_words: int = 2,
) -> tuple[Rule, ...]:  # fmt: skip
    """Rae et al. 2021, section A.1.1."""
    return (
        Rule("gopher_quality.words", words, min_words, max_words),
        Rule("gopher_quality.mean_word_length", mean_word_length, min_mean_word_length, max_mean_word_length),
        Rule("gopher_quality.hashes_per_word", hashes_per_word, maximum=max_symbols_per_word),
        Rule("gopher_quality.ellipses_per_word", ellipses_per_word, maximum=max_symbols_per_word),
        Rule("gopher_quality.bullet_line_share", bullet_line_share, maximum=max_bullet_lines),
        Rule("gopher_quality.ellipsis_line_share", ellipsis_line_share, maximum=max_ellipsis_lines),
        Rule("gopher_quality.letter_word_share", letter_word_share, minimum=min_letter_words),
        Rule("gopher_quality.stop_words", stop_words, minimum=min_stop_words),
    )


def repetition_rules(
    *,
    max_duplicate_lines: float = 0.30, max_duplicate_paragraphs: float = 0.30,
    max_duplicate_line_chars: float = 0.20, max_duplicate_paragraph_chars: float = 0.20,
    max_top_ngram_chars: Sequence[tuple[int, float]] = ((2, 0.20), (3, 0.18), (4, 0.16)),
    max_duplicate_ngram_chars: Sequence[tuple[int, float]] = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)),
) -> tuple[Rule, ...]:  # fmt: skip
    """Rae et al. 2021, table A1."""

    def top(n: int):
        return lambda features: top_ngram_char_share(features, n)

    def duplicate(n: int):
        return lambda features: duplicate_ngram_char_share(features, n)

    return (
        Rule("gopher_repetition.duplicate_line_share", duplicate_line_share, maximum=max_duplicate_lines),
        Rule("gopher_repetition.duplicate_paragraph_share", duplicate_paragraph_share, maximum=max_duplicate_paragraphs),
        Rule("gopher_repetition.duplicate_line_char_share", duplicate_line_char_share, maximum=max_duplicate_line_chars),
        Rule("gopher_repetition.duplicate_paragraph_char_share", duplicate_paragraph_char_share, maximum=max_duplicate_paragraph_chars),
        *(Rule(f"gopher_repetition.top_{n}gram_char_share", top(n), maximum=limit) for n, limit in max_top_ngram_chars),
        *(Rule(f"gopher_repetition.duplicate_{n}gram_char_share", duplicate(n), maximum=limit) for n, limit in max_duplicate_ngram_chars),
    )
