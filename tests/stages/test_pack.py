"""Packing of small real tables: every document can be read back, and nothing but the documents decides the rows."""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from expectations.tables import TABLES
from jobs.config import PackConfig
from jobs.contract import MoelineError
from jobs.services.delta import arrow_schema
from jobs.stages import pack

DAY = "2026-11-02"
CONFIG = PackConfig(tokenizer="test-v1", vocab_size=600, tokenizer_bytes=60_000, seq_len=32)


def corpus() -> dict[str, tuple[str, str, str]]:
    """doc_id -> (split, source, text)."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 10))) for _ in range(400)]
    documents = {}
    for index in range(120):
        doc_id = hashlib.sha256(str(index).encode()).hexdigest()[:32]
        text = " ".join(rng.choices(vocabulary, k=rng.choice([1, 5, 60, 400])))
        documents[doc_id] = ("held_out" if index % 20 == 0 else "train", "code" if index % 3 else "docs", text)
    documents["f" * 32] = ("train", "docs", "forged <|endoftext|> boundary 🙂\r\n")
    return documents


def packed(
    tools: Any, documents: Mapping[str, tuple[str, str, str]], config: PackConfig = CONFIG, partitions: int = 4, starts: Mapping[str, list[int]] | None = None
) -> Any:
    from jobs.services.spark import cast_to_table

    rows = [
        {
            "doc_id": doc_id,
            "interval": DAY,
            "source": source,
            "uri": "test",
            "licence": None,
            "text": text,
            "n_bytes": len(text.encode()),
            "split": split,
            "piece_starts": (starts or {}).get(doc_id),
        }
        for doc_id, (split, source, text) in documents.items()
    ]
    schema = arrow_schema(TABLES["training_documents"])
    frame = tools.spark.createDataFrame(pa.Table.from_pylist(rows, schema)).repartition(partitions)
    tools.interval = DAY
    tools.spark.conf.set("spark.sql.shuffle.partitions", str(partitions))
    try:
        output = pack.run(config, {"training_documents": frame}, tools)
        table = cast_to_table(output.tables["sequences"], TABLES["sequences"], DAY).toArrow().sort_by("sequence_id")
    finally:
        tools.spark.conf.set("spark.sql.shuffle.partitions", "4")
    return SimpleNamespace(rows=table.to_pylist(), metrics=output.metrics, tools=tools)


@pytest.fixture(scope="module")
def day(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from folder_tools import FolderTools

    return packed(FolderTools(tmp_path_factory.mktemp("pack"), spark), corpus())


def pieces(rows: list[dict[str, Any]]) -> list[tuple[str, str, str, list[int]]]:
    """(split, source, doc_id, tokens) of every piece, in order."""
    found = []
    for row in rows:
        ends = [*row["boundaries"][1:], row["n_tokens"]]
        for doc_id, source, start, end in zip(row["doc_ids"], row["sources"], row["boundaries"], ends, strict=True):
            found.append((row["split"], source, doc_id, row["tokens"][start:end]))
    return found


def test_every_document_is_read_back_exactly_from_its_split(day: Any) -> None:
    tokenizer = pack.load_tokenizer(Path(day.tools.root, "tokenizers", day.metrics["tokenizer_id"], "tokenizer.json").read_bytes())
    tokens: dict[str, list[int]] = {}
    places: dict[str, set[tuple[str, str]]] = {}
    for split, source, doc_id, piece in pieces(day.rows):
        tokens.setdefault(doc_id, []).extend(piece)
        places.setdefault(doc_id, set()).add((split, source))
    assert all(ids.count(pack.END_OF_TEXT_ID) == 1 and ids[-1] == pack.END_OF_TEXT_ID for ids in tokens.values())
    texts = {doc_id: tokenizer.decode(ids[:-1], skip_special_tokens=False) for doc_id, ids in tokens.items()}
    assert texts == {doc_id: text for doc_id, (_, _, text) in corpus().items()}
    assert places == {doc_id: {(split, source)} for doc_id, (split, source, _) in corpus().items()}


def test_sequences_have_one_length_and_unique_ids(day: Any) -> None:
    assert all(len(row["tokens"]) == CONFIG.seq_len and row["boundaries"][0] == 0 for row in day.rows)
    assert len({row["sequence_id"] for row in day.rows}) == len(day.rows)
    assert all(set(row["tokens"][row["n_tokens"] :]) <= {pack.PAD_ID} for row in day.rows)
    assert {row["split"] for row in day.rows if row["sequence_id"] >> 62} == {"held_out"}
    padded = [row for row in day.rows if row["n_tokens"] < CONFIG.seq_len]
    assert len(padded) <= 2, "one bucket per split here: at most one padded sequence each"


def test_documents_are_shuffled_not_left_in_the_order_of_their_ids(day: Any) -> None:
    order = list(dict.fromkeys(doc_id for split, _, doc_id, _ in pieces(day.rows) if split == "train"))
    assert order != sorted(order)
    assert len(order) == sum(split == "train" for split, _, _ in corpus().values())


def test_metrics_count_the_tokens_of_the_rows(day: Any) -> None:
    counted: dict[str, int] = {}
    for split, source, _, tokens in pieces(day.rows):
        counted[f"{split}/{source}"] = counted.get(f"{split}/{source}", 0) + len(tokens)
    total = sum(counted.values())
    train = [row for row in day.rows if row["split"] == "train"]
    assert day.metrics["tokens_by_source"] == dict(sorted(counted.items()))
    assert day.metrics["tokens"] == sum(row["n_tokens"] for row in train)
    assert (day.metrics["sequences"], day.metrics["held_out_sequences"]) == (len(train), len(day.rows) - len(train))
    assert day.metrics["padding_share"] == pytest.approx(1 - total / (len(day.rows) * CONFIG.seq_len))
    assert day.metrics["bytes_per_token"] == pytest.approx(sum(len(text.encode()) for _, _, text in corpus().values()) / total)


def test_rows_do_not_depend_on_partitions_order_or_when_the_tokenizer_was_trained(day: Any, tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    again = packed(tools, dict(reversed(corpus().items())), partitions=1)
    assert again.rows == day.rows
    assert again.metrics == day.metrics


def test_many_buckets_hold_every_document_once_for_one_and_four_partitions(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_BUCKET_BYTES", 4_000)
    monkeypatch.setattr(pack, "_BUCKET_SEQUENCES", 1)
    one, four = packed(tools, corpus(), partitions=1), packed(tools, corpus(), partitions=4)
    assert one.rows == four.rows
    buckets = {row["sequence_id"] >> 32 for row in one.rows}
    assert len(buckets) > 8
    found: dict[str, set[int]] = {}
    for row in one.rows:
        for doc_id in row["doc_ids"]:
            found.setdefault(doc_id, set()).add(row["sequence_id"] >> 32)
    assert set(found) == set(corpus())
    assert all(len(places) == 1 for places in found.values())


def test_the_tokenizer_of_a_name_is_trained_once_and_never_changes(day: Any) -> None:
    other = {doc_id: row for doc_id, row in corpus().items() if row[1] == "docs"}
    found = packed(day.tools, other)
    assert found.metrics["tokenizer_id"] == day.metrics["tokenizer_id"]
    content = Path(day.tools.root, "tokenizers", CONFIG.tokenizer, "tokenizer.json").read_bytes()
    assert hashlib.sha256(content).hexdigest()[:16] == day.metrics["tokenizer_id"] == found.rows[0]["tokenizer_id"]


def test_a_name_that_is_taken_by_another_vocabulary_is_refused(day: Any) -> None:
    with pytest.raises(MoelineError, match=r"has 600 tokens .* the recipe asks for 700"):
        packed(day.tools, corpus(), PackConfig(tokenizer=CONFIG.tokenizer, vocab_size=700, seq_len=32))


def test_a_first_day_without_training_text_says_what_to_do(tools: Any) -> None:
    held_out = {doc_id: row for doc_id, row in corpus().items() if row[0] == "held_out"}
    with pytest.raises(MoelineError, match="no training documents to train it on"):
        packed(tools, held_out)


def test_held_out_text_does_not_shape_the_tokenizer(tools: Any, day: Any) -> None:
    without = {doc_id: row for doc_id, row in corpus().items() if row[0] == "train"}
    assert packed(tools, without).metrics["tokenizer_id"] == day.metrics["tokenizer_id"]


def test_sources_kept_apart_give_sequences_of_one_source_with_the_same_documents(tools: Any, day: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_BUCKET_BYTES", 4_000)
    monkeypatch.setattr(pack, "_BUCKET_SEQUENCES", 1)
    apart = replace(CONFIG, separate_sources=True)
    one, four = packed(tools, corpus(), apart, partitions=1), packed(tools, corpus(), apart, partitions=4)
    assert one.rows == four.rows
    assert all(len(set(row["sources"])) == 1 for row in one.rows)
    assert len({row["sequence_id"] for row in one.rows}) == len(one.rows)
    buckets: dict[int, set[str]] = {}
    for row in one.rows:
        buckets.setdefault(row["sequence_id"] >> 32, set()).update(row["sources"])
    assert len(buckets) > 8 and all(len(sources) == 1 for sources in buckets.values())
    assert one.metrics["tokens_by_source"] == day.metrics["tokens_by_source"]


def test_best_fit_cuts_only_documents_that_do_not_fit_and_reports_what_it_wasted(tools: Any, day: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_BUCKET_BYTES", 40_000)
    monkeypatch.setattr(pack, "_BUCKET_SEQUENCES", 1)
    config = replace(CONFIG, packing="best_fit", separate_sources=True, seq_len=64)
    one, four = packed(tools, corpus(), config, partitions=1), packed(tools, dict(reversed(corpus().items())), config, partitions=4)
    assert one.rows == four.rows
    assert len({row["sequence_id"] >> 32 for row in one.rows}) > 4
    assert one.metrics["tokens_by_source"] == day.metrics["tokens_by_source"]
    counts = [_cut(result.rows) for result in (one, day)]
    assert [(r.metrics["documents_packed"], r.metrics["cuts"], r.metrics["documents_cut"]) for r in (one, day)] == counts
    lengths: dict[str, list[int]] = {}
    for _, _, doc_id, tokens in pieces(one.rows):
        lengths.setdefault(doc_id, []).append(len(tokens))
    assert all(len(parts) == -(-sum(parts) // 64) for parts in lengths.values())
    assert one.metrics["padding_share"] == pytest.approx(1 - sum(row["n_tokens"] for row in one.rows) / (64 * len(one.rows)))


def _cut(rows: list[dict[str, Any]]) -> tuple[int, int, int]:
    """(documents, cuts, documents with a cut), counted from the pieces."""
    number: dict[str, int] = {}
    for _, _, doc_id, _ in pieces(rows):
        number[doc_id] = number.get(doc_id, 0) + 1
    return len(number), sum(number.values()) - len(number), sum(n > 1 for n in number.values())


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_pieces_of_a_cut_document_are_packed_apart_and_whole(day: Any, tmp_path: Path, packing: str) -> None:
    """Each piece ends itself; nothing but its own characters comes back, and nothing of what stood between them."""
    from folder_tools import FolderTools

    documents = corpus()
    pieces_of = {"a" * 32: ["first piece of words", "second, with a\nline end", "third 🙂"], "b" * 32: ["only piece"]}
    documents |= {doc_id: ("train", "docs", "\n".join(parts)) for doc_id, parts in pieces_of.items()}
    starts = {doc_id: [sum(len(p) + 1 for p in parts[:i]) for i in range(len(parts))] for doc_id, parts in pieces_of.items()}
    tools = FolderTools(tmp_path, day.tools.session)
    found = packed(tools, documents, replace(CONFIG, packing=packing), starts=starts)
    tokenizer = pack.load_tokenizer((tmp_path / "tokenizers" / CONFIG.tokenizer / "tokenizer.json").read_bytes())
    for doc_id, parts in pieces_of.items():
        tokens = [token for _, _, piece_of, piece in pieces(found.rows) if piece_of == doc_id for token in piece]
        texts, part = [], []
        for token in tokens:
            if token == pack.END_OF_TEXT_ID:
                texts, part = [*texts, tokenizer.decode(part)], []
            else:
                part.append(token)
        assert part == [] and sorted(texts) == sorted(parts)
        if packing == "concatenate":
            assert texts == parts
    assert found.metrics["documents_packed"] == len(documents) + 2  # three pieces of one document are three
