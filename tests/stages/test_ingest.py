"""Ingest on real Spark: a good day, and a day with everything wrong."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from expectations.tables import TABLES
from jobs.config import IngestConfig
from jobs.contract import MoelineError
from jobs.services.landing import LandedFile
from jobs.services.spark import cast_to_table
from jobs.services.tombstones import Forgotten, hidden
from jobs.stages import ingest

DAY = "2026-11-01"


def land(root: Path, source: str, name: str, content: bytes) -> LandedFile:
    path = root / source / DAY / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return LandedFile(str(path), source, str(path.relative_to(root)), DAY, hashlib.sha256(content).hexdigest())


def jsonl(*rows: dict) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def ingested(files: list[LandedFile], tools, config: IngestConfig | None = None, forgotten: Forgotten | None = None):
    output = ingest.run(config or IngestConfig(), {"landing": files, "forgotten": forgotten}, tools)
    tables = {name: cast_to_table(frame, TABLES[name], DAY).toArrow().to_pylist() for name, frame in output.tables.items()}
    return tables["documents"], tables["quarantine"], output.metrics


@pytest.fixture
def good_files(tmp_path) -> list[LandedFile]:
    table = pa.table({"text": ["from parquet"], "uri": ["p:1"], "licence": ["ISC"]})
    pq.write_table(table, tmp_path / "made.parquet")
    return [
        land(tmp_path, "web", "a.jsonl.zst", zst(jsonl({"text": "one", "uri": "u:1", "licence": "MIT"}, {"text": "zwei é"}))),
        land(tmp_path, "web", "b.jsonl.gz", gzip.compress(jsonl({"text": "three", "url": "u:3"}))),
        land(tmp_path, "web", "c.parquet", (tmp_path / "made.parquet").read_bytes()),
        land(tmp_path, "docs", "d.md", b"# A title\n"),
    ]


def test_files_behind_a_url_are_the_same_documents(good_files, tools):
    behind = [dataclasses.replace(file, path=f"file://{file.path}") for file in good_files]
    over_url, local = ingested(behind, tools), ingested(good_files, tools)
    by_id = lambda rows: sorted(rows, key=lambda row: row["doc_id"])  # noqa: E731
    assert (by_id(over_url[0]), over_url[1:]) == (by_id(local[0]), local[1:])


def test_a_good_day_is_all_documents(good_files, tools):
    documents, quarantine, metrics = ingested(good_files, tools)
    assert quarantine == []
    assert {d["uri"]: (d["source"], d["text"], d["licence"], d["n_bytes"], d["landed_file"], d["interval"]) for d in documents} == {
        "u:1": ("web", "one", "MIT", 3, f"web/{DAY}/a.jsonl.zst", DAY),
        f"web/{DAY}/a.jsonl.zst#2": ("web", "zwei é", None, 7, f"web/{DAY}/a.jsonl.zst", DAY),
        "u:3": ("web", "three", None, 5, f"web/{DAY}/b.jsonl.gz", DAY),
        "p:1": ("web", "from parquet", "ISC", 12, f"web/{DAY}/c.parquet", DAY),
        f"docs/{DAY}/d.md#1": ("docs", "# A title\n", None, 10, f"docs/{DAY}/d.md", DAY),
    }
    for d in documents:
        assert d["doc_id"] == hashlib.sha256(f"{d['source']}\0{d['uri']}\0{d['text']}".encode()).hexdigest()[:32]
    assert metrics == {"files": 4, "documents": 5, "bytes": 37, "quarantined": 0, "quarantine_reasons": {}}
    assert tools.reported[-1][:2] == (4, 4)


def test_a_bad_day_is_quarantined_with_reasons_and_the_good_records_stay(good_files, tmp_path, tools):
    many = zst(b"".join(jsonl({"text": os.urandom(200).hex(), "uri": f"m:{i}"}) for i in range(2000)))
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "wrong.parquet")
    bad = [
        land(tmp_path, "web", "e-broken.jsonl.zst", many[: len(many) // 2]),
        land(tmp_path, "web", "f-columns.parquet", (tmp_path / "wrong.parquet").read_bytes()),
        land(tmp_path, "web", "g-junk.jsonl", b"\x00\xff\xfe" * 5000),
        land(tmp_path, "web", "h-empty.jsonl.zst", b""),
        land(tmp_path, "web", "i-long.jsonl.zst", zst(b'{"text": "short"}\n{"text": "' + b"y" * 50_000_000 + b'"}\n{"text": "after"}\n')),
        land(tmp_path, "web", "j-utf8.jsonl", b'{"text": "fine"}\n{"text": "\xff"}\n{"text": null}\n{"txt": "a"}\nnot json\n'),
        land(tmp_path, "web", "k.xyz", b"?"),
    ]
    documents, quarantine, metrics = ingested(good_files + bad, tools)
    texts = {d["text"] for d in documents}
    assert {"one", "zwei é", "three", "from parquet", "# A title\n", "short", "after", "fine"} <= texts
    kept = sum(d["landed_file"].endswith("e-broken.jsonl.zst") for d in documents)
    assert 500 < kept < 1500

    found = sorted((q["file"].rsplit("/", 1)[1][0], q["offset"], q["error"]) for q in quarantine)
    expected = [
        ("e", None, "truncated zstd"), ("f", -1, "no column 'text'"), ("g", -1, "binary data"), ("h", -1, "empty file"),
        ("i", 18, "line of 50000012 bytes"), ("j", 17, "invalid UTF-8"), ("j", 31, "field 'text' must be text"),
        ("j", 46, "field 'text' must be text"), ("j", 59, "invalid JSON"), ("k", -1, "unknown file type"),
    ]  # fmt: skip
    assert len(found) == len(expected)
    for (file, offset, error), (wanted_file, wanted_offset, wanted_error) in zip(found, expected, strict=True):
        assert (file, error[: len(wanted_error)]) == (wanted_file, wanted_error)
        assert offset > 0 if wanted_offset is None else offset == wanted_offset
    assert all(len(q["raw"]) <= 1024 for q in quarantine)
    assert metrics["documents"] == len(documents)
    assert metrics["bytes"] == sum(d["n_bytes"] for d in documents)
    assert metrics["quarantined"] == sum(metrics["quarantine_reasons"].values()) == 10
    assert metrics["quarantine_reasons"]["field"] == 2


def test_a_record_landed_twice_stays_once_the_first_by_file_and_offset(tmp_path, tools):
    row = {"text": "same", "uri": "u:1"}
    files = [
        land(tmp_path, "web", "b.jsonl", jsonl({"text": "other", "uri": "u:2"}, row)),
        land(tmp_path, "web", "a.jsonl", jsonl({"text": "more", "uri": "u:3"}, row, row)),
        land(tmp_path, "docs", "a.jsonl", jsonl(row)),  # another source is another document
    ]
    documents, quarantine, metrics = ingested(files, tools)
    assert sorted((d["text"], d["landed_file"]) for d in documents) == [
        ("more", f"web/{DAY}/a.jsonl"), ("other", f"web/{DAY}/b.jsonl"), ("same", f"docs/{DAY}/a.jsonl"), ("same", f"web/{DAY}/a.jsonl"),
    ]  # fmt: skip
    first = len(jsonl({"text": "more", "uri": "u:3"}))
    again = [(f"web/{DAY}/a.jsonl", first + len(jsonl(row))), (f"web/{DAY}/b.jsonl", len(jsonl({"text": "other", "uri": "u:2"})))]
    assert sorted((q["file"], q["offset"]) for q in quarantine) == again
    assert all(q["error"].startswith("repeated record") and q["raw"] == b"same" for q in quarantine)
    assert metrics["documents"] == 4
    assert metrics["bytes"] == sum(d["n_bytes"] for d in documents)
    assert metrics["quarantine_reasons"] == {"repeated record": 2}


def test_what_was_forgotten_does_not_come_in_again_and_leaves_no_bytes(tmp_path, tools):
    row = {"text": "a secret", "uri": "u:1"}
    files = [
        land(tmp_path, "web", "a.jsonl", jsonl({"text": "stays", "uri": "u:0"}, row, row, {"text": "another text", "uri": " u:2 "})),
        land(tmp_path, "docs", "a.jsonl", jsonl(row)),  # another source is another document
    ]
    forgotten = Forgotten(frozenset({ingest.doc_id("web", "u:1", "a secret")}), frozenset({hidden("u:2")}))
    documents, quarantine, metrics = ingested(files, tools, forgotten=forgotten)
    assert sorted((d["source"], d["text"]) for d in documents) == [("docs", "a secret"), ("web", "stays")]
    assert [(q["file"], q["error"], q["raw"]) for q in quarantine] == [(f"web/{DAY}/a.jsonl", "forgotten on request", b"")] * 3
    assert (metrics["documents"], metrics["quarantine_reasons"]) == (2, {"forgotten on request": 3})


def test_only_the_configured_sources_are_read(good_files, tools):
    documents, _, metrics = ingested(good_files, tools, IngestConfig(sources=("docs",)))
    assert [d["source"] for d in documents] == ["docs"]
    assert metrics["files"] == 1


def test_a_day_without_files_says_where_it_looked(good_files, tools):
    with pytest.raises(MoelineError, match=rf"Nothing has landed for {DAY}: looked for files in landing/<source>/{DAY}/"):
        ingest.run(IngestConfig(), {}, tools)
    with pytest.raises(MoelineError, match=rf"landing/{{news}}/{DAY}/, found 4 file"):
        ingest.run(IngestConfig(sources=("news",)), {"landing": good_files}, tools)
