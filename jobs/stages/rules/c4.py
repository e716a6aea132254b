"""C4's rules (Raffel et al. 2020, JMLR 21:140, section 2.2; reference: tensorflow/datasets, tensorflow_datasets/text/c4_utils.py).

Line rules edit the text, page rules reject it. The numbers are the reference's and the final paper's: at least 5 words in a line and
3 sentences on a page (datatrove and dolma copied them swapped from the first arXiv text). Named differences: sentences are counted at
``. ? !`` before white space and a character that is no lower-case letter, or at the end of the line (the reference asks NLTK's Punkt,
whose model is a download; datatrove asks spaCy's sentencizer, which also splits before lower case); the list of bad words is not
applied, because it is somebody else's; language and repeated 3-line spans are rules of their own.
``c4_fineweb`` is C4 as FineWeb runs it: no end mark needed, and the swapped numbers (3 words, 5 sentences).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from jobs.stages.rules.features import Features
from jobs.stages.rules.rule import Rule

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_END_MARKS = (".", "?", "!", '"')
_ELLIPSIS = "..."
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_SENTENCE_END = re.compile(r"""[.?!]["'\u201d\u2019)\]]*+(?=\s++[^\sa-z]|\s*+\Z)""")
_LINE_COUNTS = ("lines_long_word", "lines_no_end_mark", "lines_few_words", "lines_javascript", "lines_policy")
_PAGE_COUNTS = ("characters", "sentences", "lorem_ipsum", "curly_brackets")


def sentences(line: str) -> int:
    """Sentences of a line; a rest without an end mark is one."""
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    return len(ends) + bool(line[ends[-1] if ends else 0 :].strip())


def edit(
    name: str, *, min_words_per_line: int = 5, max_word_length: int = 1000, require_end_mark: bool = True
) -> Callable[[str], tuple[str, dict[str, float]]]:
    """The line rules as a function from a text to the lines that stay and what was counted on the way, under ``name.<count>``."""

    def line_broken(line: str, words: list[str]) -> str | None:
        if require_end_mark and (not line.endswith(_END_MARKS) or line.endswith(_ELLIPSIS)):
            return "lines_no_end_mark"
        return "lines_few_words" if len(words) < min_words_per_line else None

    def edited(text: str) -> tuple[str, dict[str, float]]:
        counts = dict.fromkeys((*_PAGE_COUNTS, *_LINE_COUNTS), 0)
        counts["characters"] = len(text)
        kept = []
        for whole in text.splitlines():
            line = whole.strip()
            broken = "lines_long_word" if any(len(word) > max_word_length for word in line.split()) else None
            line = _CITATION.sub("", line)
            broken = broken or line_broken(line, line.split())
            if broken is None:  # the page rules see, as in the reference, the lines that got this far
                lower = line.lower()
                counts["lorem_ipsum"] += "lorem ipsum" in lower
                if "javascript" in lower:
                    broken = "lines_javascript"
                else:
                    counts["curly_brackets"] += "{" in line
                    broken = "lines_policy" if any(phrase in lower for phrase in _POLICY) else None
            if broken is None:
                counts["sentences"] += sentences(line)
                kept.append(line)
            elif line:
                counts[broken] += 1
        return "\n".join(kept).strip(), {f"{name}.{count}": n for count, n in counts.items()}

    return edited


def rules(name: str, *, min_sentences: int = 3, max_characters: int = 190_000) -> tuple[Rule, ...]:
    """The page rules, and how many lines each line rule took as scores without a limit."""

    def counted(count: str) -> Callable[[Features], float]:
        return lambda features: features.edits[f"{name}.{count}"]

    return (
        Rule(f"{name}.sentences", counted("sentences"), minimum=min_sentences),
        Rule(f"{name}.lorem_ipsum", counted("lorem_ipsum"), maximum=0),
        Rule(f"{name}.curly_brackets", counted("curly_brackets"), maximum=0),
        Rule(f"{name}.characters", counted("characters"), maximum=max_characters),  # before the line rules
        *(Rule(f"{name}.{count}", counted(count)) for count in _LINE_COUNTS),
    )
