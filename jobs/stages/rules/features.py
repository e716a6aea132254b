"""What the rules measure, computed once per document: lines, paragraphs, words and their counts.

Words are what FineWeb's pipeline calls words (spaCy's English tokenizer), approximated by one regular expression so that
splitting costs 1/50 of it: a run of letters and digits is a word (inner ``. _ '`` do not split it, ``- / = :`` do), every
other visible character is a word of its own, a run of dots or of dashes is one. Written for space-separated scripts.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property

_WORD = re.compile(r"[^\W_]+(?:[._'’]+[^\W_]+)*|\.{2,}|-{2,}|[^\w\s]|_")
_LETTER = re.compile(r"[^\W\d_]")
_PARAGRAPH_BREAK = re.compile(r"\n{2,}")


class Features:
    """Lazily computed views of one text; a rule set that needs no words never splits them."""

    def __init__(self, text: str):
        self.text = text

    @cached_property
    def n_bytes(self) -> int:
        return len(self.text) if self.text.isascii() else len(self.text.encode())

    @cached_property
    def lines(self) -> list[str]:
        """Every line, blank ones too, without line ends."""
        return self.text.splitlines()

    @cached_property
    def full_lines(self) -> list[str]:
        """Lines with anything but white space in them."""
        return [line for line in self.text.split("\n") if line and not line.isspace()]

    @cached_property
    def paragraphs(self) -> list[str]:
        return _PARAGRAPH_BREAK.split(self.text.strip())

    @cached_property
    def words(self) -> list[str]:
        """Words in order, punctuation marks included."""
        return _WORD.findall(self.text)

    @cached_property
    def word_counts(self) -> Counter[str]:
        return Counter(self.words)

    @cached_property
    def plain_word_counts(self) -> dict[str, int]:
        """Counts of the words that are not punctuation."""
        return {word: n for word, n in self.word_counts.items() if word[0].isalnum()}

    @cached_property
    def n_plain_words(self) -> int:
        return sum(self.plain_word_counts.values())

    @cached_property
    def n_words_with_letter(self) -> int:
        return sum(n for word, n in self.plain_word_counts.items() if word.isalpha() or _LETTER.search(word))


def share(part: float, whole: float) -> float:
    """``part / whole``, 0.0 when there is no whole: an empty text breaks the size rules, not the arithmetic."""
    return part / whole if whole else 0.0
