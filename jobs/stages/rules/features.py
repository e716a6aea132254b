"""What the rules measure, computed once per document: lines, paragraphs, words and their counts.

Words are what FineWeb's pipeline calls words (spaCy's English tokenizer), approximated by one regular expression so that
splitting costs a tenth of it: a run of letters and digits is a word, and goes on over inner marks (``don't``, ``np.array``,
``f(x``) except ``, : < > = / -`` before a letter; every other visible character is a word of its own, a run of dots or of
dashes is one. Written for space-separated scripts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

_WORD = re.compile(r"[^\W_]+(?:(?:[^\w\s.,:<>=/-]|[._])+[^\W_]+|[,:<>=/-]\d[^\W_]*)*|\.{2,}|-{2,}|[^\w\s]|_")
_LONG_PIECE, _MOST_PIECES = 64, 1 << 17  # characters of a piece worth remembering; pieces remembered, some 20 MB
_LETTER = re.compile(r"[^\W\d_]")


class _Pieces(dict[str, tuple[str, ...]]):
    """The words of every piece between white space, split once: no word reaches over white space, and pieces recur from text to text."""

    def __missing__(self, piece: str) -> tuple[str, ...]:
        words = tuple(_WORD.findall(piece))
        if len(piece) <= _LONG_PIECE:
            if len(self) >= _MOST_PIECES:
                self.clear()
            self[piece] = words
        return words


_WORDS_OF = _Pieces()


class Features:
    """Views of one text, made when first asked for; a rule set that needs no words never splits them.

    Not functools.cached_property: rules are shipped to Spark workers by value, and its lock (Python 3.11) cannot travel.
    """

    def __init__(self, text: str, edits: Mapping[str, float] | None = None, identify: Callable[[str], dict[str, float]] | None = None):
        self.text = text
        self._identify = identify
        self.edits = edits or {}  # what the edits of rule sets counted, by "<set>.<count>"
        self._made: dict[str, Any] = {}

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """``make()``, kept for the other rules of this document that ask for the same key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @property
    def n_bytes(self) -> int:
        return len(self.text) if self.text.isascii() else len(self.text.encode())

    @property
    def lines(self) -> list[str]:
        """Every line, blank ones too, without line ends."""
        return self.once("lines", self.text.splitlines)

    @property
    def full_lines(self) -> list[str]:
        """Lines with anything but white space in them."""
        return self.once("full_lines", lambda: [line for line in self.text.split("\n") if line and not line.isspace()])

    @property
    def paragraphs(self) -> list[str]:
        """Stretches between two or more line ends, of the text without white space around it."""
        # Twice as fast as splitting at \n{2,}: after a run of line ends at most one is left, at the head of the next piece.
        return self.once("paragraphs", lambda: [part.lstrip("\n") for part in self.text.strip().split("\n\n") if part] or [""])

    @property
    def words(self) -> list[str]:
        """Words in order, punctuation marks included."""
        return self.once("words", lambda: list(chain.from_iterable(map(_WORDS_OF.__getitem__, self.text.split()))))

    @property
    def word_counts(self) -> Counter[str]:
        return self.once("word_counts", lambda: Counter(self.words))

    @property
    def plain_word_counts(self) -> dict[str, int]:
        """Counts of the words that are not punctuation."""
        return self.once("plain_word_counts", lambda: {word: n for word, n in self.word_counts.items() if word[0].isalnum()})

    @property
    def n_plain_words(self) -> int:
        return self.once("n_plain_words", lambda: sum(self.plain_word_counts.values()))

    @property
    def languages(self) -> dict[str, float]:
        """Probability by language, most likely first."""
        return self.once("languages", lambda: self._identify(self.text))

    @property
    def n_words_with_letter(self) -> int:
        return sum(n for word, n in self.plain_word_counts.items() if word.isalpha() or _LETTER.search(word))


def share(part: float, whole: float) -> float:
    """``part / whole``, 0.0 when there is no whole: an empty text breaks the size rules, not the arithmetic."""
    return part / whole if whole else 0.0
