"""Verdicts of C4, Gopher and FineWeb rules against datatrove itself, document by document, on texts of the installed distributions.

Run: python tests/oracles/datatrove_rules.py FOLDER   (FOLDER: a site-packages folder; in an environment with datatrove==0.10.1 and spacy)
Not part of the test suite: datatrove is no dependency. Each set is judged twice. First with datatrove's definitions put in the place of
the named ones (its words, sentences, end marks and punctuation; without its share of words with letters, which moeline measures
otherwise on purpose): then every verdict must be the same, or the run ends with status 1. Then as moeline judges: what is
counted there is what the named definitions change.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.filters.c4_filters import END_PUNCTUATION
from datatrove.utils.text import PUNCTUATION_SET, split_into_sentences, split_into_words

from jobs.stages import rules
from jobs.stages.rules import c4

FILTERS = {
    "gopher_quality": GopherQualityFilter(max_non_alpha_words_ratio=None),
    "gopher_repetition": GopherRepetitionFilter(),
    "fineweb": FineWebQualityFilter(),
    "c4": C4QualityFilter(min_num_sentences=3, min_words_per_line=5),
    "c4_fineweb": C4QualityFilter(filter_no_terminal_punct=False),
}


def texts(folder: Path) -> Iterator[str]:
    """Long descriptions of distributions, and docstrings of at least 300 characters."""
    for file in sorted(folder.glob("*.dist-info/METADATA")):
        yield file.read_text(errors="replace").partition("\n\n")[2]
    for file in sorted(folder.rglob("*.py"))[::23]:
        try:
            tree = ast.parse(file.read_text(errors="replace"))
        except (SyntaxError, ValueError):
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
        yield from (text for text in found if text and len(text) >= 300)


def theirs(name: str, text: str) -> tuple[bool, str]:
    """Whether datatrove keeps the document, and its text then."""
    document = Document(text=text, id="")
    return FILTERS[name].filter(document) is True, document.text


def ours(name: str, text: str, *, as_datatrove: bool) -> tuple[bool, str]:
    """The same of moeline; ``as_datatrove`` with the definitions of the other."""
    measured = rules.features((name,), text)
    left_out = set()
    if as_datatrove and not name.startswith("c4"):
        words = split_into_words(text)
        measured.once("words", lambda: words)
        measured.once("plain_word_counts", lambda: Counter(w for w in words if any(c not in PUNCTUATION_SET for c in w)))
        left_out = {"gopher_quality.letter_word_share"}
    kept = all(rule.broken_limit(float(rule.measure(measured))) is None for rule in rules.select((name,)) if rule.name not in left_out)
    return kept, measured.text


@contextmanager
def datatrove_lines() -> Iterator[None]:
    """C4 with datatrove's sentences and end marks."""
    before = c4.sentences, c4._END_MARKS
    c4.sentences, c4._END_MARKS = (lambda line: len(split_into_sentences(line))), END_PUNCTUATION
    yield
    c4.sentences, c4._END_MARKS = before


def main(folder: Path) -> int:
    corpus = [text for text in texts(folder) if text.strip()][:1500]
    print(f"{len(corpus)} documents, {sum(map(len, corpus))} characters")
    wrong = 0
    for name in FILTERS:
        found = [theirs(name, text) for text in corpus]
        with datatrove_lines():
            same = [ours(name, text, as_datatrove=True) for text in corpus]
        own = [ours(name, text, as_datatrove=False) for text in corpus]
        differ = sum(a[0] != b[0] for a, b in zip(found, same, strict=True))
        other_text = sum(a[0] and b[0] and a[1] != b[1] for a, b in zip(found, same, strict=True))
        wrong += differ
        print(f"{name}: datatrove keeps {sum(kept for kept, _ in found)}; with its definitions {differ} verdicts differ, {other_text} kept texts do;", end=" ")
        print(f"as moeline judges {sum(a[0] != b[0] for a, b in zip(found, own, strict=True))} verdicts differ")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
