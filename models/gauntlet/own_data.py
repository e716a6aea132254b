"""The own-data benchmark: questions made from held-out documents, so that a model is asked about the data it is meant to learn.

next_line: which of four lines follows the context. identifier: which of four names completes the statement (Python). docstring: which
first line documents this function, which text describes this parameter, or which sentence follows. Deterministic: the same documents, task and seed give
the same items, whatever their order. Nothing here looks at a model. Change here: what is asked. Not here: who is held out (jobs/contract.py).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import keyword
import random
import re
import tokenize
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

TASKS = ("next_line", "identifier", "docstring")
CHOICES = 4
CONTEXT_CHARS = 480  # with a choice it fits a sequence of 256 tokens of a small BPE
# Several questions per document, this far apart (characters): 1 % of a small corpus is few documents, and fewer of them hold functions.
PLACES_PER_DOCUMENT = {"next_line": 12, "identifier": 24, "docstring": 24}
PLACES_APART = {"next_line": 160, "identifier": 120, "docstring": 60}
_MAX_DOCUMENT_CHARS = 200_000
_PYTHON_LINE = re.compile(r"^\s*(?:def \w+\(|class \w+|import \w|from [\w.]+ import |return\b|if .+:$|for .+ in .+:$|self\.\w)", re.M)
_FUNCTION = re.compile(
    r"^[ \t]*(?:(?:async )?def (?!__)\w{3,60}\((?:[^()]|\([^()]*\)){0,300}\)[^:\n\"']{0,60}|class \w{3,60}(?:\([^()]{0,100}\))?):\n"
    r"[ \t]*[rRuU]?(?P<quote>\"\"\"|''')(?P<lead>\n?[ \t]*)(?P<first>[^\s\"'][^\n]{14,100})$",
    re.M,
)
# What a parameter means, as numpydoc ("name : type" and the next line), Google ("name (type): ...") and Sphinx (":param name: ...") write it.
_PARAMETER = re.compile(
    r"^[ \t]*(?:\w+(?:, \w+)* : [^\n]{2,80}(?P<lead1>\n[ \t]+)|\w+(?: \([^)\n]{2,60}\))?:(?P<lead2> )|:param (?:\w+ )?\w+:(?P<lead3> ))"
    r"(?P<text>[A-Z][^\n]{24,110})$",
    re.M,
)
_BLOCK = re.compile(r"(?P<quote>\"\"\"|''')(?P<text>.{200,20000}?)(?P=quote)", re.S)
_SENTENCE = re.compile(r"(?<=[.!?])[ \n]+(?=[A-Z])|\n{2,}")


@dataclass(frozen=True)
class OwnItem:
    """``row`` is a Foundry multiple_choice row: query, choices (with their leading white space), gold."""

    item_id: str
    doc_id: str
    source: str
    row: dict[str, Any]


@dataclass(frozen=True)
class _Document:
    doc_id: str
    source: str
    text: str
    is_python: bool


@dataclass(frozen=True)
class _Place:
    """A question before it has wrong answers. ``group`` says which texts may stand in for ``answer`` (same form and role)."""

    document: _Document
    offset: int
    context: str
    before: str  # what every choice starts with (white space)
    answer: str
    after: str  # what every choice ends with (rest of the statement)
    group: tuple[Any, ...]


def looks_like_python(text: str) -> bool:
    """Whether at least one line in twelve has the form of a Python statement (sources are named freely, so their names cannot tell)."""
    head = text[:_MAX_DOCUMENT_CHARS]
    lines = sum(1 for line in head.splitlines() if line.strip())
    return lines >= 5 and 12 * len(_PYTHON_LINE.findall(head)) >= lines


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _cut_context(text: str, end: int) -> str:
    """The whole lines before ``end``, at most CONTEXT_CHARS; cut at a word inside a longer line."""
    start = max(0, end - CONTEXT_CHARS)
    if start and text[start - 1] != "\n":
        newline, space = text.find("\n", start, end - 1), text.find(" ", start, end - 1)
        start = newline + 1 if 0 <= newline < end - 60 else space + 1 if space >= 0 else start
    return text[start:end]


# --- where questions can be asked ----------------------------------------------------------------------------------------------------


def _next_line_places(document: _Document) -> Iterator[_Place]:
    offset, previous = 0, ""
    for line in document.text.split("\n"):
        body = line.strip()
        end = offset - 1  # of the previous line, its newline excluded
        if previous.strip() and 12 <= len(body) <= 90 and sum(c.isalpha() for c in body) >= 8 and not (document.is_python and body[0] in "#'\""):
            context = _cut_context(document.text, end)
            if len(context.strip()) >= 80 and _normal(body) not in _normal(context):
                indent = line[: len(line) - len(line.lstrip())]
                # What a line ends with says how it may go on, so answers are only swapped among lines that end alike.
                yield _Place(document, offset, context, f"\n{indent}", body, "", (document.is_python, indent, body[-1] if body[-1] in ":,([{" else ""))
        previous = line
        offset += len(line) + 1


def _names(document: _Document) -> list[tuple[str, int, bool]]:
    """(name, character offset, is attribute) of every identifier; [] when the text is not tokenisable Python."""
    starts = [0]
    for line in document.text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    names: list[tuple[str, int, bool]] = []
    after_dot = False
    try:
        for token in tokenize.generate_tokens(io.StringIO(document.text).readline):
            is_name = token.type == tokenize.NAME and not keyword.iskeyword(token.string) and len(token.string) >= 3 and token.string not in ("self", "cls")
            if is_name and document.text.startswith(token.string, at := starts[token.start[0] - 1] + token.start[1]):
                names.append((token.string, at, after_dot))
            after_dot = token.string == "."
    except (tokenize.TokenError, SyntaxError, ValueError, IndexError):
        pass  # not Python 3, or cut off: the names until there are still good
    return names


def _style(name: str) -> str:
    return "upper" if name.isupper() else "camel" if name[0].isupper() else "snake" if "_" in name.strip("_") else "lower"


def _identifier_places(document: _Document) -> Iterator[_Place]:
    if not document.is_python:
        return
    seen: dict[str, int] = {}
    for name, at, attribute in _names(document):
        line_end = document.text.find("\n", at)
        rest = document.text[at + len(name) : line_end if line_end >= 0 else len(document.text)].rstrip()
        line_start = document.text.rfind("\n", 0, at) + 1
        known = seen.get(name, -1) >= at - CONTEXT_CHARS + 80  # it stands in the context, so it can be known
        seen[name] = at
        if known and at - line_start >= 4 and document.text[line_start:at].strip() and len(rest) <= 40:
            context = _cut_context(document.text, at)
            stripped = context.rstrip()
            if len(stripped) >= 80 and name in stripped:
                yield _Place(document, at, stripped, context[len(stripped) :], name, rest, (attribute, _style(name)))


def _docstring_places(document: _Document) -> Iterator[_Place]:
    text = document.text
    for match in _PARAMETER.finditer(text):
        lead = next(group for group in ("lead1", "lead2", "lead3") if match[group] is not None)
        context = _cut_context(text, match.start(lead))
        if len(context) >= 60 and _is_prose(match["text"]):
            yield _Place(document, match.start(), context, match[lead], match["text"].rstrip(), "", ("parameter", lead))
    if not document.is_python:
        yield from _sentence_places(document, 0, len(text))
        return
    for match in _FUNCTION.finditer(text):
        first = match["first"].split(match["quote"])[0].rstrip()
        if len(first) >= 15:
            yield _Place(document, match.start(), text[match.start() : match.start("lead")], match["lead"], first, "", ("function",))
    for match in _BLOCK.finditer(text):
        yield from _sentence_places(document, match.start("text"), match.end("text"))


def _is_prose(text: str) -> bool:
    return "=" not in text and text.count(" ") >= 3 and sum(c.isalpha() or c == " " for c in text) >= 0.8 * len(text)


def _sentence_places(document: _Document, start: int, stop: int) -> Iterator[_Place]:
    """Sentences of running text between ``start`` and ``stop`` that follow another of the same paragraph."""
    boundaries = [(m.start(), m.end()) for m in _SENTENCE.finditer(document.text, start, stop)]
    for (at, end), (following, _) in itertools.pairwise([*boundaries, (stop, stop)]):
        sentence = " ".join(document.text[end:following].split())
        if "\n\n" in document.text[at:end]:
            start = end
        elif 25 <= len(sentence) <= 180 and sentence[-1] in ".!?" and _is_prose(sentence):
            context = _cut_context(document.text[start:at], at - start)
            if len(context) >= 40:
                yield _Place(document, end, context, document.text[at:end], sentence, "", ("sentence",))


_PLACES: dict[str, Callable[[_Document], Iterator[_Place]]] = {
    "next_line": _next_line_places, "identifier": _identifier_places, "docstring": _docstring_places,
}  # fmt: skip


# --- wrong answers -------------------------------------------------------------------------------------------------------------------


class _Pool:
    """Texts that can stand in for an answer, by group, sorted by length."""

    def __init__(self, places: list[_Place]):
        groups: dict[tuple[Any, ...], set[tuple[int, str]]] = defaultdict(set)
        for place in places:
            for group in (place.group, (place.document.doc_id, *place.group)):
                groups[group].add((len(place.answer), place.answer))
        self._groups = {group: sorted(texts) for group, texts in groups.items()}

    def draw(self, place: _Place, task: str, rng: random.Random) -> list[str]:
        """CHOICES - 1 wrong answers of about the length of the right one, or [] when there are none.

        How many of them are longer is drawn first: distinct texts are longer than frequent ones, so without it the right answer would be
        the shortest too often. Names come from the same document first (they are all plausible there); lines and sentences from everywhere.
        """
        groups = [(place.document.doc_id, *place.group), place.group] if task == "identifier" else [place.group]
        chosen: list[str] = []
        refused = {_normal(place.answer)}
        n_longer = rng.randrange(CHOICES)
        for wanted, longer in ((n_longer, True), (CHOICES - 1 - n_longer, False)):
            found = 0
            for group, slack in itertools.product(groups, (0.15, 0.3, 0.6)):
                for text in self._near(group, len(place.answer), slack, longer, rng):
                    if found < wanted and _normal(text) not in refused and not (task != "identifier" and text in place.context):
                        chosen.append(text)
                        refused.add(_normal(text))
                        found += 1
            if found < wanted:
                return []
        return rng.sample(chosen, len(chosen))

    def _near(self, group: tuple[Any, ...], size: int, slack: float, longer: bool, rng: random.Random) -> list[str]:
        """Some texts of the group, in random order, as long as ``size`` or up to ``slack`` longer (shorter)."""
        texts = self._groups[group]
        reach = max(1, int(size * slack))
        low, high = (size, size + reach) if longer else (size - reach, size)
        order = range(bisect_left(texts, (low, "")), bisect_left(texts, (high + 1, "")))
        return [texts[index][1] for index in rng.sample(order, min(len(order), 20))]


def _spread(places: list[_Place], task: str, rng: random.Random) -> list[_Place]:
    """Some places of one document, in random order, none close to another."""
    taken: list[_Place] = []
    for place in rng.sample(places, len(places)):
        if all(abs(place.offset - other.offset) > PLACES_APART[task] for other in taken):
            taken.append(place)
            if len(taken) == PLACES_PER_DOCUMENT[task]:
                break
    return taken


def _rng(*identity: object) -> random.Random:
    return random.Random(":".join(map(str, identity)))  # noqa: S311 - repeatable, not secret


def stable_order(item_id: str, seed: int) -> str:
    """Sort key that orders items by a seeded hash: which ones a cap keeps and where the right answer stands depend on nothing else."""
    return hashlib.sha256(f"{seed}:{item_id}".encode()).hexdigest()


def make_items(documents: Iterable[tuple[str, str, str]], *, task: str, seed: int, max_items: int | None = None) -> list[OwnItem]:
    """Questions of ``task`` about ``documents`` (doc_id, source, text), ordered by item id.

    Wrong answers come from the documents of the same call and have the form and about the length of the right one. The right answer stands
    at each of the four places equally often. ``max_items`` keeps the first in hash order. Raises ValueError for an unknown task.
    """
    if task not in _PLACES:
        raise ValueError(f"Unknown own-data task {task!r}. Known: {', '.join(TASKS)}.")
    unique = {doc_id: (source, text.replace("\r\n", "\n")[:_MAX_DOCUMENT_CHARS]) for doc_id, source, text in documents}
    by_document = {doc_id: list(_PLACES[task](_Document(doc_id, source, text, looks_like_python(text)))) for doc_id, (source, text) in sorted(unique.items())}
    documents_of = Counter(answer for places in by_document.values() for answer in {_normal(p.answer) for p in places})
    pool = _Pool([place for places in by_document.values() for place in places])
    made: list[tuple[str, _Place, list[str]]] = []
    for doc_id, places in by_document.items():
        # Text found in several held-out documents is boilerplate, which training documents will hold too. Names are shared by nature.
        own = [p for p in places if task == "identifier" or documents_of[_normal(p.answer)] == 1]
        for place in _spread(own, task, _rng(seed, task, doc_id)):
            wrong = pool.draw(place, task, _rng(seed, task, doc_id, place.offset))
            if wrong:
                made.append((f"{doc_id}:{place.offset}", place, wrong))
    made.sort(key=lambda one: stable_order(one[0], seed))
    items = []
    for rank, (item_id, place, wrong) in enumerate(made[:max_items]):
        answers = [*wrong[: rank % CHOICES], place.answer, *wrong[rank % CHOICES :]]
        row = {"query": place.context, "choices": [f"{place.before}{answer}{place.after}" for answer in answers], "gold": rank % CHOICES}
        items.append(OwnItem(item_id, place.document.doc_id, place.document.source, row))
    return sorted(items, key=lambda item: item.item_id)
