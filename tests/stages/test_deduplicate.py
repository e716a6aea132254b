"""Deduplication of small real tables: planted copies, chains, other days; checked against brute force."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from expectations.tables import TABLES
from jobs.config import DeduplicateConfig
from jobs.contract import MoelineError
from jobs.stages import deduplicate

MONDAY, TUESDAY = "2026-11-02", "2026-11-03"
CONFIG = DeduplicateConfig()


def random_text(count: int, seed: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(count))


def edited(text: str, *places: int) -> str:
    words = text.split()
    for place in places:
        words[place] = f"edited{place}"
    return " ".join(words)


def brute_jaccard(left: str, right: str) -> float:
    a, b = ({tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in (left.lower().split(), right.lower().split()))
    return len(a & b) / len(a | b) if a | b else float(left.lower().split() == right.lower().split())


def documents_of(spark: Any, texts: Mapping[str, str], interval: str, partitions: int = 2, sources: Mapping[str, str] | None = None) -> Any:
    from jobs.services.spark import rows_schema

    rows = [
        {
            "doc_id": doc_id, "interval": interval, "source": (sources or {}).get(doc_id, "prose"), "uri": f"test:{doc_id}", "licence": None, "text": text,
            "n_bytes": len(text.encode()), "scores": "{}",
        }
        for doc_id, text in texts.items()
    ]  # fmt: skip
    schema = pa.schema([(c.name, {"int64": pa.int64()}.get(c.type, pa.string())) for c in TABLES["clean_documents"].columns])
    return spark.createDataFrame(pa.Table.from_pylist(rows, schema), rows_schema(TABLES["clean_documents"])).repartition(partitions)


def deduplicated(
    tools: Any, texts: Mapping[str, str], interval: str, others: Mapping[str, Any] | None = None, partitions: int = 2,
    config: DeduplicateConfig = CONFIG, sources: Mapping[str, str] | None = None,
) -> Any:  # fmt: skip
    """The day's rows by table (sorted, and checked to be castable to the contract), and the stage's metrics."""
    from jobs.services.spark import cast_to_table, rows_schema

    tools.interval = interval
    documents = documents_of(tools.spark, texts, interval, partitions, sources)
    output = deduplicate.run(config, {"clean_documents": documents, "fingerprints": None, "unique_documents": None, **(others or {})}, tools)
    assert set(output.tables) == set(deduplicate.WRITES)
    tables = {name: cast_to_table(frame, TABLES[name]).toArrow() for name, frame in output.tables.items()}
    frames = {name: tools.spark.createDataFrame(table, rows_schema(TABLES[name])) for name, table in tables.items()}
    rows = {name: sorted(table.to_pylist(), key=lambda r: (r["doc_id"], r.get("band", 0))) for name, table in tables.items()}
    return SimpleNamespace(texts=texts, frames=frames, metrics=output.metrics, **rows)


def long_text(seed: int) -> str:
    return random_text(150, seed)


BASE, CHAIN = long_text(1), long_text(2)
MONDAY_TEXTS = {
    **{f"m-unrelated-{i}": long_text(100 + i) for i in range(20)},
    "m-base": BASE,
    "m-copy": BASE.upper().replace(" ", "\n\n"),  # the same normalised text, and the longest of the cluster
    "m-near": edited(BASE, 70),
    "m-half": " ".join(BASE.split()[:75]) + " " + long_text(3)[:300],
    "m-chain-a": CHAIN + " " + " ".join(f"tail{i}" for i in range(30)),
    "m-chain-b": CHAIN,
    "m-chain-c": " ".join(CHAIN.split()[25:]),
    "m-short-1": "Only three words",
    "m-short-2": "only  three words",
    "m-short-3": "other three words",
    "m-kept": long_text(4),
}
TUESDAY_TEXTS = {
    **{f"t-unrelated-{i}": long_text(200 + i) for i in range(5)},
    "t-near-monday": MONDAY_TEXTS["m-kept"] + " and much longer than what Monday kept",
    "t-near-monday-copy": (MONDAY_TEXTS["m-kept"] + " and much longer than what Monday kept").upper(),
    "t-exact-monday": MONDAY_TEXTS["m-kept"].title(),
    "t-short": "ONLY three words",
    "m-unrelated-0": MONDAY_TEXTS["m-unrelated-0"],  # landed again: the same document id on two days
}


@pytest.fixture(scope="module")
def days(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from folder_tools import FolderTools

    tools = FolderTools(tmp_path_factory.mktemp("days"), spark)
    monday = deduplicated(tools, MONDAY_TEXTS, MONDAY)
    others = {name: monday.frames[name] for name in ("fingerprints", "unique_documents")}
    return SimpleNamespace(tools=tools, others=others, monday=monday, tuesday=deduplicated(tools, TUESDAY_TEXTS, TUESDAY, others))


def dropped(day: Any) -> dict[str, tuple[str, str, str]]:
    return {r["doc_id"]: (r["kept_interval"], r["kept_doc_id"], r["scope"]) for r in day.duplicates}


def test_every_document_is_kept_or_dropped_and_never_both(days: Any) -> None:
    for day in (days.monday, days.tuesday):
        kept = {r["doc_id"] for r in day.unique_documents}
        assert kept | set(dropped(day)) == set(day.texts)
        assert not kept & set(dropped(day))
        assert len(kept) == len(day.unique_documents) == day.metrics["kept"]
        assert {r["doc_id"]: r["text"] for r in day.unique_documents} == {k: v for k, v in day.texts.items() if k in kept}


def test_planted_duplicates_of_one_day_are_dropped_for_the_longest(days: Any) -> None:
    found = dropped(days.monday)
    assert found == {
        "m-base": (MONDAY, "m-copy", "exact"),
        "m-near": (MONDAY, "m-copy", "near"),
        "m-chain-b": (MONDAY, "m-chain-a", "near"),
        "m-short-1": (MONDAY, "m-short-2", "exact"),
    }
    assert brute_jaccard(MONDAY_TEXTS["m-chain-b"], MONDAY_TEXTS["m-chain-c"]) > 0.7 > brute_jaccard(MONDAY_TEXTS["m-chain-a"], MONDAY_TEXTS["m-chain-c"])


def test_what_another_day_kept_wins_even_over_a_longer_copy(days: Any) -> None:
    assert dropped(days.tuesday) == {
        "t-near-monday": (MONDAY, "m-kept", "near_other_day"),
        "t-near-monday-copy": (MONDAY, "m-kept", "near_other_day"),
        "t-exact-monday": (MONDAY, "m-kept", "exact_other_day"),
        "t-short": (MONDAY, "m-short-2", "exact_other_day"),
        "m-unrelated-0": (MONDAY, "m-unrelated-0", "exact_other_day"),
    }


def test_recorded_similarities_are_true_and_to_a_document_that_was_kept(days: Any) -> None:
    kept_texts = {(day, r["doc_id"]): r["text"] for day, rows in ((MONDAY, days.monday), (TUESDAY, days.tuesday)) for r in rows.unique_documents}
    for day in (days.monday, days.tuesday):
        for row in day.duplicates:
            true = brute_jaccard(day.texts[row["doc_id"]], kept_texts[row["kept_interval"], row["kept_doc_id"]])
            assert row["jaccard"] == pytest.approx(true, abs=1e-12)
            assert row["jaccard"] >= CONFIG.min_jaccard


def test_no_two_kept_documents_are_near_duplicates(days: Any) -> None:
    kept = [r["text"] for r in days.monday.unique_documents + days.tuesday.unique_documents]
    assert max(brute_jaccard(a, b) for a, b in combinations(kept, 2)) < 0.8


def test_cluster_size_counts_the_kept_document_and_all_dropped_for_it(days: Any) -> None:
    assert {r["doc_id"]: r["cluster_size"] for r in days.monday.duplicates} == {"m-base": 3, "m-near": 3, "m-chain-b": 2, "m-short-1": 2}
    assert {r["doc_id"]: r["cluster_size"] for r in days.tuesday.duplicates if r["kept_doc_id"] == "m-kept"} == dict.fromkeys(
        ("t-near-monday", "t-near-monday-copy", "t-exact-monday"), 4
    )


def test_fingerprints_hold_kept_documents_only_with_all_bands_and_the_exact_hash(days: Any) -> None:
    for day in (days.monday, days.tuesday):
        bands: dict[str, list[int]] = {}
        for row in day.fingerprints:
            bands.setdefault(row["doc_id"], []).append(row["band"])
        for row in day.unique_documents:
            expected = [-1] if len(row["text"].split()) < CONFIG.shingle_words else list(range(-1, CONFIG.bands))
            assert bands.pop(row["doc_id"]) == expected
        assert bands == {}


def test_metrics_count_what_happened(days: Any) -> None:
    metrics = days.tuesday.metrics
    assert metrics["documents"] == len(TUESDAY_TEXTS)
    assert metrics["duplicates_by_scope"] == {"exact_other_day": 3, "near_other_day": 2}
    assert metrics["bytes_kept"] == sum(len(r["text"]) for r in days.tuesday.unique_documents)
    assert metrics["verified_pairs"] <= metrics["candidate_pairs"]


def test_the_rows_do_not_depend_on_order_partitions_or_a_second_run(days: Any) -> None:
    shuffled = dict(random.Random(0).sample(sorted(TUESDAY_TEXTS.items()), len(TUESDAY_TEXTS)))
    days.tools.spark.conf.set("spark.sql.shuffle.partitions", "1")
    try:
        again = deduplicated(days.tools, shuffled, TUESDAY, days.others, partitions=1)
    finally:
        days.tools.spark.conf.set("spark.sql.shuffle.partitions", "4")
    for name in deduplicate.WRITES:
        assert getattr(again, name) == getattr(days.tuesday, name)
    assert again.metrics == days.tuesday.metrics


def test_pairs_too_many_for_one_process_are_decided_alike_in_spark(days: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deduplicate, "_COLLECTED_PAIRS", 0)
    texts = {f"{i:02d}": " ".join(CHAIN.split()[8 * i : 8 * i + 80]) for i in range(9)} | {"t-near-monday": TUESDAY_TEXTS["t-near-monday"]}
    in_spark = deduplicated(days.tools, texts, TUESDAY, days.others)
    monkeypatch.undo()
    here = deduplicated(days.tools, texts, TUESDAY, days.others)
    assert in_spark.duplicates == here.duplicates
    assert len({r["kept_doc_id"] for r in here.duplicates}) >= 3, "a chain that takes several rounds"
    assert in_spark.metrics == here.metrics


def test_a_day_whose_documents_are_all_gone_gives_empty_tables(days: Any) -> None:
    empty = {name: frame.where("false") for name, frame in days.others.items()}
    found = deduplicated(days.tools, {}, TUESDAY, empty)
    assert (found.unique_documents, found.duplicates, found.fingerprints) == ([], [], [])
    assert (found.metrics["documents"], found.metrics["kept"], found.metrics["bytes"]) == (0, 0, 0)


def test_a_bucket_of_many_copies_costs_linear_work(tools: Any) -> None:
    text = long_text(9)
    texts = {f"{i:03d}": edited(text, 60 + i % 30).replace("edited", f"version{i:03d}x") for i in range(200)}
    found = deduplicated(tools, texts, MONDAY)
    assert [r["doc_id"] for r in found.unique_documents] == [min(texts, key=lambda name: (-len(texts[name]), name))]
    assert {r["cluster_size"] for r in found.duplicates} == {200}
    assert found.metrics["candidate_pairs"] < 14 * 16 * 200 < 14 * 200 * 199 / 2


def test_windows_of_one_text_form_the_six_known_clusters(tools: Any) -> None:
    """The layout of datatrove's own test (tests/pipeline/dedup/test_minhash.py), on a text of ours and counted in words."""
    text = random_text(500, 7).split()
    clusters = [[0, 2, 5], [62, 64], [125, 126, 127, 129, 131], [190, 191, 192, 194], [250], [310]]
    texts = {f"{ci}-{start:03d}": " ".join(text[start : start + 60]) for ci, cluster in enumerate(clusters) for start in cluster}
    found = deduplicated(tools, texts, MONDAY)
    assert all(r["doc_id"][0] == r["kept_doc_id"][0] for r in found.duplicates)
    assert sorted(r["doc_id"][0] for r in found.unique_documents) == ["0", "1", "2", "3", "4", "5"]


def test_fingerprints_without_their_documents_are_refused(days: Any, tmp_path: Path) -> None:
    broken = {**days.others, "unique_documents": days.others["unique_documents"].where("doc_id != 'm-kept'")}
    with pytest.raises(Exception, match="fingerprints name m-kept of 2026-11-02, which unique_documents does not hold"):
        deduplicated(days.tools, {"t": TUESDAY_TEXTS["t-near-monday"]}, TUESDAY, broken)


SCOPED = {name: long_text(5) for name in ("a-web", "b-web", "c-books")} | {"d-books": edited(long_text(5), 70), "e-web": "two words", "f-books": "two words"}
SOURCES = {name: name.partition("-")[2] for name in (*SCOPED, "g-web", "h-books", "i-mail")}
LATER = {"g-web": long_text(5).upper(), "h-books": edited(long_text(5), 100), "i-mail": long_text(5)}


@pytest.mark.parametrize(
    ("scope", "first_day", "second_day"),
    [
        (
            "all",
            {"a-web": "d-books", "b-web": "d-books", "c-books": "d-books", "f-books": "e-web"},
            {"g-web": "d-books", "h-books": "d-books", "i-mail": "d-books"},
        ),
        ("source", {"b-web": "a-web", "c-books": "d-books"}, {"g-web": "a-web", "h-books": "d-books"}),
        ("day", {"a-web": "d-books", "b-web": "d-books", "c-books": "d-books", "f-books": "e-web"}, {"h-books": "g-web", "i-mail": "g-web"}),
    ],
)
def test_the_scope_of_the_recipe_says_who_is_compared(tools: Any, scope: str, first_day: dict[str, str], second_day: dict[str, str]) -> None:
    config = DeduplicateConfig(scope=scope)
    monday = deduplicated(tools, SCOPED, MONDAY, config=config, sources=SOURCES)
    others = {name: monday.frames[name] for name in ("fingerprints", "unique_documents")}
    tuesday = deduplicated(tools, LATER, TUESDAY, others, config=config, sources=SOURCES)
    assert {r["doc_id"]: r["kept_doc_id"] for r in monday.duplicates} == first_day
    assert {r["doc_id"]: r["kept_doc_id"] for r in tuesday.duplicates} == second_day
    assert {r["kept_interval"] for r in tuesday.duplicates} == ({TUESDAY} if scope == "day" else {MONDAY})


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(MoelineError, match="must be 'all', 'source' or 'day', not 'dump'"):
        DeduplicateConfig(scope="dump")


def brute_containment(left: str, right: str) -> float:
    a, b = ({tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in (left.lower().split(), right.lower().split()))
    return len(a & b) / min(len(a), len(b))


def test_a_recipe_that_asks_for_containment_drops_what_another_text_holds(tools: Any) -> None:
    text = long_text(11)
    texts = {
        "whole": text,
        "extended": text + " " + random_text(90, 12),  # J .61, but all of "whole" is in it
        "changed": edited(text, 20, 60, 100),  # J .82, containment .90
        "half-new": " ".join(text.split()[:100]) + " " + random_text(50, 13),  # J .49, containment .66
        "copy": text.upper(),
    }
    config = DeduplicateConfig(measure="containment", min_containment=0.85, bands=60, rows=3)  # bands that meet every pair of this similarity
    by_jaccard = deduplicated(tools, texts, MONDAY, config=replace(config, measure="jaccard"))
    by_containment = deduplicated(tools, texts, MONDAY, config=config)
    assert {r["doc_id"]: r["kept_doc_id"] for r in by_jaccard.duplicates} == {"copy": "changed", "whole": "changed"}
    for row in by_containment.duplicates:
        assert row["jaccard"] == pytest.approx(brute_jaccard(texts[row["doc_id"]], texts[row["kept_doc_id"]]), abs=1e-12)
        assert row["containment"] == pytest.approx(brute_containment(texts[row["doc_id"]], texts[row["kept_doc_id"]]), abs=1e-12)
    assert {r["doc_id"]: r["kept_doc_id"] for r in by_containment.duplicates} == dict.fromkeys(("whole", "changed", "copy"), "extended")
    assert {r["containment"] for r in by_jaccard.duplicates} == {None}
    assert by_jaccard.metrics["candidate_pairs"] == by_containment.metrics["candidate_pairs"]


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(MoelineError, match="must be 'jaccard' or 'containment', not 'cosine'"):
        DeduplicateConfig(measure="cosine")
