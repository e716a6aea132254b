"""Decontamination of small real tables: planted benchmark words, boilerplate, held-out documents."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from expectations.tables import TABLES
from jobs.config import DecontaminateConfig, SuiteConfig
from jobs.contract import MoelineError, is_held_out
from jobs.decontamination import ItemNgrams, ngram_tokens
from jobs.stages import decontaminate
from models.gauntlet import symbolic, tasks

DAY = "2026-11-02"
CONFIG = DecontaminateConfig(suite=SuiteConfig(items_per_task=40))


def random_text(count: int, seed: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(count))


def prose(seed: int) -> str:
    """Sentences long enough for own-data items to be made of them."""
    words = random_text(400, seed).split()
    return "\n".join(" ".join(words[i : i + 10]).capitalize() + "." for i in range(0, len(words), 10))


HELD_OUT = [f"h{i}" for i in range(3000) if is_held_out(f"h{i}")][:8]
TRAIN = [f"t{i}" for i in range(200) if not is_held_out(f"t{i}")]
OTHER_DAY_ITEM = {"query": random_text(30, 77), "choices": [" yes", " no"], "gold": 0}
FOUNDRY_CONTEXT = random_text(40, 78)


def around(words: str) -> str:
    """A document that holds exactly these words, with other case and punctuation."""
    return f"{random_text(50, 5)} {', '.join(words.upper().split())}! {random_text(50, 6)}"


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    held = {doc_id: prose(1000 + i) for i, doc_id in enumerate(HELD_OUT)}
    item_words = OTHER_DAY_ITEM["query"].split()
    boilerplate = " ".join(FOUNDRY_CONTEXT.split()[:13])
    planted = {
        TRAIN[0]: around(" ".join(item_words[3:16])),  # 13 words of an item
        TRAIN[1]: around(" ".join(item_words[3:15])),  # 12
        TRAIN[2]: around(" ".join(FOUNDRY_CONTEXT.split()[20:40])),
        TRAIN[3]: held[HELD_OUT[0]],  # a copy of a held-out document that deduplication missed
        TRAIN[4]: "short",
    }
    # In 11 documents: one more than max_documents, so these words are boilerplate. The eleventh is held out.
    common = {doc_id: f"{boilerplate} {random_text(60, 300 + i)}" for i, doc_id in enumerate(TRAIN[5:15])}
    held[HELD_OUT[7]] = f"{boilerplate}\n{held[HELD_OUT[7]]}"
    return {**held, **planted, **common, **{doc_id: random_text(80, 500 + i) for i, doc_id in enumerate(TRAIN[15:60])}}


@pytest.fixture(scope="module")
def gauntlet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Foundry's layout with one task of ours."""
    folder = tmp_path_factory.mktemp("gauntlet")
    (folder / "local_data" / "world").mkdir(parents=True)
    rows = [{"context": FOUNDRY_CONTEXT, "continuation": "blue"}, {"context": "too short to match", "continuation": "red"}]
    (folder / "local_data" / "world" / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = "icl_tasks:\n- label: colours\n  dataset_uri: eval/local_data/world/colours.jsonl\n  num_fewshot: [0]\n  icl_task_type: language_modeling\n"
    (folder / "tasks.yaml").write_text(task)
    return folder


def decontaminated(tools: Any, texts: Mapping[str, str], items: list[dict[str, str]] | None, config: DecontaminateConfig = CONFIG) -> Any:
    from jobs.services.spark import cast_to_table, rows_schema

    tools.interval = DAY
    rows = [
        {
            "doc_id": doc_id, "interval": DAY, "source": "prose", "uri": f"test:{doc_id}", "licence": None, "text": text,
            "n_bytes": len(text.encode()), "scores": "{}",
        }
        for doc_id, text in texts.items()
    ]  # fmt: skip
    schema = pa.schema([(c.name, pa.int64() if c.type == "int64" else pa.string()) for c in TABLES["unique_documents"].columns])
    documents = tools.spark.createDataFrame(pa.Table.from_pylist(rows, schema))
    names = [c.name for c in TABLES["benchmark_items"].columns]
    others = items and tools.spark.createDataFrame(
        pa.Table.from_pylist(items, pa.schema([(n, pa.string()) for n in names])), rows_schema(TABLES["benchmark_items"])
    )
    output = decontaminate.run(config, {"unique_documents": documents, "benchmark_items": others}, tools)
    assert set(output.tables) == set(decontaminate.WRITES)
    tables = {n: t if isinstance(t, pa.Table) else cast_to_table(t, TABLES[n]).toArrow() for n, t in output.tables.items()}
    assert tables["benchmark_items"].column_names == [n for n in names if n != "interval"]
    keys = {name: [k for k in TABLES[name].key if k != "interval"] for name in tables}
    found = {n: sorted(t.to_pylist(), key=lambda r, n=n: tuple(r[k] for k in keys[n])) for n, t in tables.items()}
    return SimpleNamespace(metrics=output.metrics, **found)


@pytest.fixture(scope="module")
def day(spark: Any, texts: dict[str, str], gauntlet: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from folder_tools import FolderTools

    tools = FolderTools(tmp_path_factory.mktemp("decontaminate"), spark, gauntlet_data=str(gauntlet))
    other = {"interval": "2026-11-01", "benchmark": "next_line", "item_id": "other-day:1", "doc_id": "x", "source": "prose", "item": json.dumps(OTHER_DAY_ITEM)}
    found = decontaminated(tools, texts, [other])
    found.tools, found.other = tools, other
    return found


def hits(day: Any) -> set[tuple[str, str, str]]:
    return {(r["doc_id"], r["benchmark"], r["item_id"]) for r in day.contamination}


def test_thirteen_words_of_an_item_drop_a_document_and_twelve_do_not(day: Any) -> None:
    kept = {r["doc_id"] for r in day.training_documents}
    assert (TRAIN[0], "next_line", "other-day:1") in hits(day)
    assert TRAIN[0] not in kept
    assert TRAIN[1] in kept


def test_the_recorded_ngram_is_the_first_one_and_stands_in_both_texts(day: Any, texts: dict[str, str]) -> None:
    row = next(r for r in day.contamination if r["doc_id"] == TRAIN[0])
    assert row["ngram"] == " ".join(OTHER_DAY_ITEM["query"].split()[3:16])
    assert (row["action"], row["interval"]) == ("drop_document", DAY)
    assert all(r["ngram"] in " ".join(ngram_tokens(texts[r["doc_id"]])) for r in day.contamination)
    assert all(len(r["ngram"].split()) == 13 for r in day.contamination)


def test_items_of_foundry_count(day: Any) -> None:
    assert (TRAIN[2], "colours", "0") in hits(day)


def test_words_found_in_many_documents_of_the_day_do_not_count(day: Any) -> None:
    assert not {doc_id for doc_id, _, _ in hits(day)} & set(TRAIN[5:15])
    assert set(TRAIN[5:15]) <= {r["doc_id"] for r in day.training_documents}
    assert day.metrics["boilerplate_ngrams"] >= 1


def test_a_copy_of_a_held_out_document_does_not_train(day: Any) -> None:
    assert TRAIN[3] in {doc_id for doc_id, _, _ in hits(day)}
    assert {r["doc_id"] for r in day.benchmark_items if (TRAIN[3], r["benchmark"], r["item_id"]) in hits(day)} == {HELD_OUT[0]}


def test_nothing_else_is_dropped(day: Any, texts: dict[str, str]) -> None:
    dirty = {TRAIN[0], TRAIN[2], TRAIN[3]}
    assert {doc_id for doc_id, _, _ in hits(day)} == dirty
    assert {r["doc_id"]: r["text"] for r in day.training_documents} == {k: v for k, v in texts.items() if k not in dirty}
    assert day.metrics["contaminated_documents"] == 3
    assert day.metrics["contaminated_bytes"] == sum(len(texts[doc_id]) for doc_id in dirty)


def test_held_out_documents_are_the_contracts_and_give_all_own_items(day: Any) -> None:
    assert {r["doc_id"] for r in day.training_documents if r["split"] == "held_out"} == set(HELD_OUT)
    assert {r["split"] for r in day.training_documents} == {"train", "held_out"}
    assert {r["doc_id"] for r in day.benchmark_items} <= set(HELD_OUT)
    assert {r["benchmark"] for r in day.benchmark_items} >= {"next_line"}
    for row in day.benchmark_items:
        item = json.loads(row["item"])
        assert 0 <= item["gold"] < len(item["choices"])
    assert sum(day.metrics["own_items"].values()) == len(day.benchmark_items)


def test_a_second_run_and_hashes_joined_as_a_table_give_the_same_rows(day: Any, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decontaminate, "_SHIPPED_NGRAMS", 0)
    again = decontaminated(day.tools, dict(reversed(texts.items())), [day.other])
    for name in decontaminate.WRITES:
        assert getattr(again, name) == getattr(day, name)
    assert again.metrics == day.metrics


def test_a_first_day_without_held_out_documents_loses_nothing(tools: Any) -> None:
    found = decontaminated(tools, {TRAIN[0]: around("some words"), TRAIN[1]: "short"}, None)
    assert (found.contamination, found.benchmark_items) == ([], [])
    assert [(r["doc_id"], r["split"]) for r in found.training_documents] == sorted((doc_id, "train") for doc_id in TRAIN[:2])


def test_a_suite_with_foundrys_tasks_refuses_to_run_without_them(tools: Any) -> None:
    config = DecontaminateConfig(suite=SuiteConfig(gauntlet_digest="ab" * 32))
    with pytest.raises(MoelineError, match="GAUNTLET_DATA is not set"):
        decontaminated(tools, {TRAIN[0]: "text"}, None, config)


def test_items_are_found_by_their_words_not_by_their_hash_alone() -> None:
    words = random_text(20, 1).split()
    items = ItemNgrams([("a", "1", " ".join(words)), ("a", "2", "too short"), ("b", "3", " ".join(words[5:]).upper())], 13)
    assert len(items.hashes()) == 8
    assert items.items_of([" ".join(words[6:19])]) == [(" ".join(words[6:19]), "a", "1"), (" ".join(words[6:19]), "b", "3")]
    assert items.items_of([" ".join(words[2:15])]) == [(" ".join(words[2:15]), "a", "1")]
    assert items.items_of([]) == []
    items._texts[0] = ("a", "1", "other words now")  # the hash still matches, the words do not
    assert items.items_of([" ".join(words[2:15])]) == []


def test_tokens_ignore_case_and_punctuation_of_any_script() -> None:
    assert ngram_tokens("Don't STOP—believing,  “Größe” $5 <b>東京。") == ["dont", "stopbelieving", "größe", "5", "b東京"]


def test_symbolic_items_are_too_short_to_be_matched_or_are_matched() -> None:
    """The suite's own symbolic texts pass through the same door as all others."""
    made = symbolic.make_items("brackets", n=40, seed=CONFIG.suite.seed)
    texts = list(tasks.item_texts(tasks.Benchmark(tasks.Task(label="brackets", kind=tasks.MULTIPLE_CHOICE, category="symbolic"), tuple(made))))
    found = ItemNgrams([("brackets", *text) for text in texts], 3)
    assert len(found.hashes()) > 40
