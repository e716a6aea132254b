"""Whole days of random texts, both rules and both actions, against brute force; and what pack and evaluation make of a cut day."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.config import DecontaminateConfig, SuiteConfig
from jobs.contract import MoelineError, is_held_out
from jobs.decontamination import split_pieces
from jobs.stages import decontaminate
from models.gauntlet import tasks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
from decontamination_by_hand import Day
from decontamination_by_hand import decontaminated as by_hand
from test_decontaminate import decontaminated

SMALL = DecontaminateConfig(  # small numbers, so that random texts of a few words meet every limit
    suite=SuiteConfig(own_data_tasks=(), symbolic_tasks=()), ngram_words=4, share_words=3, max_documents=3, cut_characters=6, min_piece_characters=12,
    max_pieces=4,
)  # fmt: skip
BY_BENCHMARK = {"action": "drop_document", "actions": (("fact*", "cut_passage"), ("facts", "drop_document"))}  # the first that fits counts
ASKED = {"facts": "cut_passage", "quiz": "drop_document"}
VOCABULARY = [*(f"w{i}" for i in range(60)), "Größe", "İstanbul", "ΣΑΣ", "東京", "e\u0301a"]
MARKS = ["—", "...", "«", "!?"]
GAPS = [" ", "\n", "\t", "\u00a0", "  "]


def shown(rng: random.Random, words: list[str]) -> str:
    """The words with other case, punctuation, gaps, and words of punctuation only between them."""
    parts = []
    for word in words:
        mark = f"{rng.choice(MARKS)}{rng.choice(GAPS)}" if rng.random() < 0.15 else ""
        parts.append(f"{mark}{word.upper() if rng.random() < 0.1 and word.upper().lower() == word else word}{rng.choice(['', '', ',', '.'])}{rng.choice(GAPS)}")
    return "".join(parts).strip()


def item_words(rng: random.Random) -> list[str]:
    return rng.choices(VOCABULARY, k=rng.choice([2, 4, 5, 8, 12, 20]))


def random_gauntlet(folder: Path, rng: random.Random) -> list[list[str]]:
    """A folder in Foundry's layout with two tasks; returns the words of its items. Some items share words, some are shorter than an n-gram."""
    (folder / "local_data").mkdir(parents=True)
    words = [item_words(rng) for _ in range(40)]
    words[1], words[21] = [*words[0][:5], *words[1]], [*words[20], *words[0]]  # hits in two items, of one benchmark and of both
    facts = [{"context": " ".join(w[:-1]) or "x", "continuation": w[-1]} for w in words[:20]]
    quiz = [{"query": " ".join(w[:-1]) or "x", "choices": [w[-1], " ".join(item_words(rng))], "gold": 0} for w in words[20:]]
    for name, rows in (("facts", facts), ("quiz", quiz)):
        (folder / "local_data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = {"facts": "language_modeling", "quiz": "multiple_choice"}
    listed = [{"label": n, "dataset_uri": f"eval/local_data/{n}.jsonl", "num_fewshot": [0], "icl_task_type": kind} for n, kind in kinds.items()]
    (folder / "tasks.yaml").write_text(json.dumps({"icl_tasks": listed}))
    return words


def random_documents(rng: random.Random, items: list[list[str]]) -> dict[str, str]:
    """Texts with parts of items planted anywhere, at the ends, over one another, and one passage in many of them."""
    held = [f"h{i}" for i in range(3000) if is_held_out(f"h{i}")][:5]
    names = [*held, *(f"t{i}" for i in range(300) if not is_held_out(f"t{i}"))][:120]
    documents = {}
    for number, name in enumerate(names):
        words = rng.choices(VOCABULARY, k=rng.choice([0, 2, 3, 10, 30, 60]))
        for _ in range(rng.choice([0, 0, 1, 1, 2, 4, 7])):
            planted = rng.choice(items)
            start = rng.randrange(len(planted))
            at = rng.choice([0, len(words), rng.randint(0, len(words))])
            words[at:at] = planted[: start + 1] if rng.random() < 0.3 else planted if rng.random() < 0.4 else planted[start : start + 6]
        if number % 9 == 0:
            words[len(words) // 2 : len(words) // 2] = items[7][:6]  # boilerplate, of an item
        documents[name] = shown(rng, words) or "—"
    return documents


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], dict[tuple[str, str], list[str]]]:
    rng = random.Random(11)
    folder = tmp_path_factory.mktemp("gauntlet")
    words = random_gauntlet(folder, rng)
    items: dict[tuple[str, str], list[str]] = {}
    for benchmark in tasks.gauntlet_data(folder):
        for item_id, text in tasks.item_texts(benchmark):
            items.setdefault((benchmark.task.label, item_id), []).append(text)
    return folder, random_documents(rng, words), items


def expected(documents: dict[str, str], items: dict[tuple[str, str], list[str]], config: DecontaminateConfig) -> Day:
    numbers = {"ngram_words": config.ngram_words, "share_words": config.share_words, "share": config.share, "max_documents": config.max_documents}
    rules = dict(config.rules)
    cutting = {
        "action_of": lambda name: ASKED[name] if config.actions else config.action,
        "around": config.cut_characters,
        "least": config.min_piece_characters,
        "most": config.max_pieces,
    }
    return by_hand(documents, {d for d in documents if is_held_out(d)}, items, lambda name: rules.get(name, config.rule), **numbers, **cutting)


@pytest.mark.parametrize("action", ["drop_document", "cut_passage", "by_benchmark"])
@pytest.mark.parametrize("rules", [{}, {"rule": "share", "rules": (("quiz", "ngram"),)}], ids=["ngram", "both"])
def test_a_day_is_what_brute_force_makes_of_it(corpus: Any, spark: Any, tmp_path: Path, rules: dict[str, Any], action: str) -> None:
    from folder_tools import FolderTools

    folder, documents, items = corpus
    config = replace(SMALL, **(BY_BENCHMARK if action == "by_benchmark" else {"action": action}), **rules)
    found = decontaminated(FolderTools(tmp_path, spark, gauntlet_data=str(folder)), documents, None, config)
    day = expected(documents, items, config)
    assert {r["doc_id"]: split_pieces(r["text"], r["piece_starts"]) for r in found.training_documents} == day.training
    assert all(r["n_bytes"] == len(r["text"].encode()) for r in found.training_documents)
    assert {r["doc_id"] for r in found.training_documents if r["split"] == "held_out"} == {d for d in documents if is_held_out(d)}
    assert {(r["doc_id"], r["benchmark"], r["item_id"]): (r["rule"], r["action"], r["removed_characters"]) for r in found.contamination} == day.contamination
    columns = ("acts", "n_ngrams", "share", "documents", "left", "contaminated", "still_trains", "action")
    assert {(r["benchmark"], r["item_id"], r["rule"]): {c: r[c] for c in columns} for r in found.contaminated_items} == day.items
    assert found.metrics["contaminated_documents"] == len({d for d, _, _ in day.contamination})
    assert found.metrics["cut_documents"] == len({d for d, _, _ in day.contamination} & set(day.training))
    assert found.metrics["removed_characters"] == sum({d: removed for (d, _, _), (_, _, removed) in day.contamination.items()}.values())
    # The texts are worth the comparison: every kind of case is among them.
    ours = [row for row in day.items.values() if row["acts"]]
    assert len(day.contamination) > 20 and found.metrics["boilerplate_ngrams"] > 2 and any(row["action"] == "none" for row in day.items.values())
    assert any(row["still_trains"] for row in day.items.values()) and any(not row["still_trains"] for row in ours)
    if action == "by_benchmark":
        paid = {d: {b for payer, b, _ in day.contamination if payer == d} for d, _, _ in day.contamination}
        assert {"facts", "quiz"} in paid.values() and all(d not in day.training for d, benchmarks in paid.items() if "quiz" in benchmarks)
    if action != "drop_document":
        assert {done for _, done, _ in day.contamination.values()} == {"cut_passage", "drop_document"}
        assert action == "by_benchmark" or max(len(parts) for parts in day.training.values()) > 2
    if rules:
        assert {rule for rule, _, _ in day.contamination.values()} == {"ngram", "share"}
        assert any(row["contaminated"] and not row["documents"] for row in ours), "no item that only all documents together hold"


def test_hashes_joined_as_a_table_give_the_same_cut_day(corpus: Any, spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from folder_tools import FolderTools

    folder, documents, _ = corpus
    config = replace(SMALL, action="cut_passage", rule="share", rules=(("quiz", "ngram"),))
    tools = FolderTools(tmp_path, spark, gauntlet_data=str(folder))
    found = decontaminated(tools, documents, None, config)
    monkeypatch.setattr(decontaminate, "_SHIPPED_NGRAMS", 0)
    again = decontaminated(tools, dict(reversed(documents.items())), None, config)
    assert all(getattr(again, name) == getattr(found, name) for name in decontaminate.WRITES) and again.metrics == found.metrics


def test_what_pack_tokenises_is_what_was_left(corpus: Any, spark: Any, tmp_path: Path) -> None:
    from folder_tools import FolderTools
    from test_pack import pieces

    from expectations.tables import TABLES
    from jobs.config import PackConfig
    from jobs.services.delta import arrow_schema
    from jobs.stages import pack

    folder, documents, items = corpus
    config = replace(SMALL, action="cut_passage")
    tools = FolderTools(tmp_path, spark, gauntlet_data=str(folder))
    rows = decontaminated(tools, documents, None, config).training_documents
    frame = spark.createDataFrame(pa.Table.from_pylist(rows, arrow_schema(TABLES["training_documents"])))
    packed = pack.run(PackConfig(tokenizer="cut", vocab_size=300, seq_len=32), {"training_documents": frame}, tools).tables["sequences"].toArrow()
    tokenizer = pack.load_tokenizer((tmp_path / "tokenizers" / "cut" / "tokenizer.json").read_bytes())
    tokens: dict[str, list[int]] = {}
    for _, _, doc_id, piece in pieces(sorted(packed.to_pylist(), key=lambda row: row["sequence_id"])):
        tokens.setdefault(doc_id, []).extend(piece)
    end = tokenizer.encode("|", add_special_tokens=False).ids  # a separator of our own: no text holds it
    read = {d: tokenizer.decode([t for token in ids for t in (end if token == pack.END_OF_TEXT_ID else [token])]).split("|")[:-1] for d, ids in tokens.items()}
    assert read == expected(documents, items, config).training


def test_a_rule_for_a_benchmark_that_is_not_in_use_stops_the_stage(corpus: Any, spark: Any, tmp_path: Path) -> None:
    from folder_tools import FolderTools

    tools = FolderTools(tmp_path, spark, gauntlet_data=str(corpus[0]))
    for asked in ({"rules": (("quizz", "share"),)}, {"actions": (("quizz", "cut_passage"),)}):
        with pytest.raises(MoelineError, match="'quizz', which is no benchmark of suite moeline-v1; the closest one in use is 'quiz'"):
            decontaminated(tools, {"t1": "text"}, None, replace(SMALL, **asked))
