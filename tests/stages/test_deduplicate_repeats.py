"""Repeated lines and paragraphs on days of small documents, in any order of days: rows are what the rule, read literally, makes of them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import duckdb
import pytest
from folder_tools import FolderTools
from test_deduplicate import deduplicated
from test_deduplicate_days import DAYS, by_the_rule, union

from jobs.config import DeduplicateConfig

Kept = dict[tuple[str, str], str]  # (day, doc_id) -> text, as it is kept


def three_days(seed: int) -> dict[str, dict[str, str]]:
    """Day -> doc_id -> text: lines and paragraphs of a common pool between lines of their own; some documents are nearly all pool."""
    rng = random.Random(seed)

    def line(n: int) -> str:
        return " ".join(f"w{rng.randrange(10**6)}" for _ in range(n))

    pool = [line(rng.choice((3, 5, 6, 9))) for _ in range(12)] + ["\n".join(line(6) for _ in range(3)) for _ in range(4)]
    days: dict[str, dict[str, str]] = {}
    for day in DAYS:
        days[day] = {}
        for i in range(14):
            blocks = [line(rng.randint(4, 9)) if rng.random() < rng.choice((0.1, 0.9)) else rng.choice(pool) for _ in range(rng.randint(3, 16))]
            text = "".join(block + rng.choice(("\n", "\n\n", "\n \n\n")) for block in blocks)
            days[day][f"{day[-2:]}{rng.randrange(16**8):08x}{i:022x}"] = text.upper() if rng.random() < 0.2 else text.strip("\n")
        few, last = [line(9) for _ in range(3)], line(6)  # "short" loses nearly all to the long one and holds the first copy of what others lose
        planted = {"long": [*few, *(line(9) for _ in range(12))], "short": [*few, last], "two": [last, line(5)], "three": [last, line(4)]}
        days[day] |= {f"{day[-2:]}{name}".ljust(31, "0") + "1": "\n\n".join(lines) for name, lines in planted.items()}
        one = sorted(days[day])[3]
        days[day][f"{day[-2:]}copy".ljust(32, "0")] = days[day][one].title()
        days[day][f"{day[-2:]}near".ljust(32, "0")] = days[day][one] + " one word"
    return days


def parts(text: str, unit: str) -> list[tuple[str, str]]:
    """(passage, what stands after it up to the next one) of a text; joined they are the text."""
    if unit == "line":
        return [(line, "\n") for line in text.split("\n")]
    runs = [(blank, "\n".join(lines)) for blank, lines in groupby(text.split("\n"), key=lambda line: not line.strip())]
    found = [("", runs.pop(0)[1] + "\n")] if runs[0][0] else []
    for i, (blank, run) in enumerate(runs):
        if not blank:
            found.append((run, "\n" + (runs[i + 1][1] + "\n" if i + 1 < len(runs) else "")))
    return found


def normal(passage: str) -> str:
    return " ".join(passage.lower().split())


def counts(passage: str) -> bool:
    return len(passage.split()) >= 5


def by_the_repeats_rule(texts: Mapping[str, str], sources: Mapping[str, str], earlier: Kept, day: str, config: DeduplicateConfig) -> Any:
    """(doc_id -> text that is kept, doc_id -> where its keepers are) for survivors of steps 1 to 3: the docstring of jobs/repeats.py."""

    def key(doc_id: str, passage: str) -> tuple[str, str]:
        return (sources[doc_id] if config.scope == "source" else "", normal(passage))

    order = [*sorted(earlier), *((day, d) for d in sorted(texts, key=lambda d: (-len(texts[d].encode()), d)))]
    holders: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for place in order:
        text = texts[place[1]] if place[0] == day else earlier[place]
        for passage in {key(place[1], p) for p, _ in parts(text, config.repeats) if counts(p)}:
            holders.setdefault(passage, []).append(place)
    left, lost = {}, {}
    for doc_id, text in texts.items():
        said: set[tuple[str, str]] = set()
        pieces, lost[doc_id] = [], []
        for passage, after in parts(text, config.repeats):
            named = key(doc_id, passage)
            mine = not counts(passage) or (day, doc_id) in holders[named][: config.repeats_max_documents]
            if mine and not (counts(passage) and named in said):
                pieces += [passage, after]
                said.add(named)
            else:
                lost[doc_id].append(((day, doc_id) if mine else holders[named][0], passage))
        left[doc_id] = "".join(pieces)[: None if pieces == [] else -1 if not text.endswith("\n") else None].strip("\n") if lost[doc_id] else text
    needed = {keeper for doc_id, gone in lost.items() for keeper, _ in gone if keeper != (day, doc_id)}
    for doc_id, gone in lost.items():
        others = [keeper for keeper, _ in gone if keeper != (day, doc_id)]
        if others and len(left[doc_id].split()) < config.repeats_min_words_left and (day, doc_id) not in needed:
            del left[doc_id]
    return left, lost


CASES = {
    "lines": (DeduplicateConfig(bands=40, rows=4, repeats="line", repeats_min_words_left=20), DAYS),
    "lines backward": (DeduplicateConfig(bands=40, rows=4, repeats="line", repeats_min_words_left=20), DAYS[1::-1]),
    "paragraphs of a source in two documents": (
        DeduplicateConfig(bands=40, rows=4, repeats="paragraph", scope="source", repeats_max_documents=2, repeats_min_words_left=30), DAYS[1:],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_days_in_any_order_lose_what_others_hold_and_nothing_else(spark: Any, tmp_path: Any, case: str) -> None:
    config, order = CASES[case]
    days, done, kept = three_days(seed=len(case)), [], {}
    sources = {doc_id: ("a" if int(doc_id[-1], 16) % 2 or config.scope == "all" else "b") for texts in days.values() for doc_id in texts}
    seen = {"shortened": 0, "dropped": 0, "of other days": 0, "kept because others need it": 0}
    for day in order:
        frames = {name: union([d.frames[name] for d in done]) for name in ("fingerprints", "unique_documents")}
        found = deduplicated(FolderTools(tmp_path / day, spark), days[day], day, frames, config=config, sources=sources)
        whole = {r["doc_id"]: (r["kept_interval"], r["kept_doc_id"]) for r in found.duplicates if r["scope"] != "repeated_passages"}
        if config.scope == "all":
            assert whole == {doc_id: keeper[:2] for doc_id, keeper in by_the_rule(days[day], kept, day).items()}
        survivors = {doc_id: text for doc_id, text in days[day].items() if doc_id not in whole}
        left, lost = by_the_repeats_rule(survivors, sources, kept, day, config)
        assert {r["doc_id"]: r["text"] for r in found.unique_documents} == left
        assert all(r["n_bytes"] == len(r["text"].encode()) for r in found.unique_documents)
        told: dict[str, list[Any]] = {doc_id: [] for doc_id in survivors}
        for r in found.repeated_passages:
            told[r["doc_id"]].append(((r["kept_interval"], r["kept_doc_id"]), survivors[r["doc_id"]][r["start"] :][: r["characters"]]))
        assert {doc_id: sorted(gone) for doc_id, gone in told.items()} == {doc_id: sorted(gone) for doc_id, gone in lost.items()}
        kept |= {(day, doc_id): text for doc_id, text in left.items()}
        short = [r for r in found.duplicates if r["scope"] == "repeated_passages"]
        assert {r["doc_id"] for r in short} == set(survivors) - set(left)
        assert all((r["kept_interval"], r["kept_doc_id"]) in kept and 0 < r["jaccard"] <= 1 for r in short)
        assert {r["doc_id"] for r in found.fingerprints} == set(left)
        shortened = {d for d in left if lost[d]}
        assert found.metrics["documents_shortened"] == len(shortened) and found.metrics["bytes_kept"] == sum(r["n_bytes"] for r in found.unique_documents)
        assert found.metrics["kept"] == len(left) and found.metrics["repeated_passages"] == sum(map(len, lost.values()))
        seen["shortened"] += len(shortened)
        seen["dropped"] += len(short)
        seen["of other days"] += sum(keeper[0] != day for gone in lost.values() for keeper, _ in gone)
        short_and_kept = sum(len(left[d].split()) < config.repeats_min_words_left for d in shortened)
        seen["kept because others need it"] += short_and_kept or config.repeats_max_documents > 1  # the planted ones are too few for two keepers
        done.append(found)
    assert all(seen.values()), f"every way to lose something occurs: {seen}"
    nothing_is_lost(days, kept, order, config)


def nothing_is_lost(days: dict[str, dict[str, str]], kept: Kept, order: Any, config: DeduplicateConfig) -> None:
    """DuckDB: a line of five words or more is kept in as many documents as the recipe allows, and at most once in each."""
    if config.repeats != "line" or config.scope != "all":
        return
    rows = [(f"{day} {doc_id}", text) for (day, doc_id), text in kept.items()]
    lines = duckdb.execute(
        "with l as (select unnest($ids) id, unnest($texts) t), s as (select id, lower(unnest(string_split(t, chr(10)))) line from l), "
        r"p as (select id, trim(regexp_replace(line, '\s+', ' ', 'g')) line from s) "
        "select line, count(*), count(distinct id) from p where len(string_split(line, ' ')) >= 5 group by 1",
        {"ids": [i for i, _ in rows], "texts": [t for _, t in rows]},
    ).fetchall()
    assert lines and all(n == documents == 1 for _, n, documents in lines)


def test_without_it_nothing_is_shortened_and_no_passage_is_stored(spark: Any, tmp_path: Any) -> None:
    texts = three_days(seed=5)[DAYS[0]]
    found = deduplicated(FolderTools(tmp_path, spark), texts, DAYS[0])
    assert found.repeated_passages == [] and min(r["band"] for r in found.fingerprints) == -1
    assert all(r["text"] == texts[r["doc_id"]] for r in found.unique_documents)
