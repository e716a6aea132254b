"""The sample corpus: real text, the same bytes every time, and safe to write again."""

from __future__ import annotations

import hashlib
import json
from email.message import Message
from pathlib import Path

import pytest
import zstandard

from jobs import sample_data
from jobs.contract import MoelineError

DAYS = ("2026-11-01", "2026-11-02", "2026-11-03")
SMALL = 3_000_000


def rows(landing: Path) -> list[tuple[str, str, dict]]:
    found = []
    for file in sorted(landing.glob("*/*/part-0000.jsonl.zst")):
        content = zstandard.ZstdDecompressor().decompress(file.read_bytes())
        found += [(file.parent.parent.name, file.parent.name, json.loads(line)) for line in content.splitlines()]
    return found


def hashes(landing: Path) -> dict[str, str]:
    return {str(f.relative_to(landing)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(landing.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, sample_data.SampleSummary]:
    landing = tmp_path_factory.mktemp("landing")
    return landing, sample_data.write(landing, DAYS, target_bytes=SMALL)


def test_it_is_about_as_large_as_asked_with_a_quarter_of_documentation(small):
    landing, summary = small
    assert 0.9 * SMALL < summary.total_bytes < 1.2 * SMALL
    assert 0.2 < summary.bytes["python-docs"] / summary.total_bytes < 0.4
    assert sum(len(row["text"].encode()) for _, _, row in rows(landing)) == summary.total_bytes
    assert sum(summary.documents.values()) == len(rows(landing))


def test_every_day_and_source_has_a_file_and_nothing_else_is_there(small):
    landing, summary = small
    expected = {f"{source}/{day}/part-0000.jsonl.zst" for source in ("python-code", "python-docs") for day in DAYS}
    assert set(summary.files) == expected == set(hashes(landing)) == set(summary.written)


def test_every_row_names_where_it_comes_from_and_no_path_of_this_machine(small):
    landing, _ = small
    for source, _, row in rows(landing):
        assert set(row) == {"text", "uri", "licence"}
        assert row["uri"].startswith(("pypi:", "python:"))
        assert ".." not in row["uri"].split("/")
        assert row["licence"] is None or (isinstance(row["licence"], str) and row["licence"])
        assert len(row["text"]) >= 200
        assert "/site-packages/" not in row["uri"]
        assert row["uri"].endswith(".py") == (source == "python-code")
    uris = [row["uri"] for _, _, row in rows(landing)]
    assert len(uris) == len(set(uris))
    assert sum(row["licence"] is not None for _, _, row in rows(landing)) > len(uris) / 2


def test_writing_again_changes_nothing_and_a_damaged_file_is_replaced(small):
    landing, _ = small
    before = {f: (f.stat().st_mtime_ns, f.stat().st_ino) for f in landing.rglob("*") if f.is_file()}
    again = sample_data.write(landing, DAYS, target_bytes=SMALL)
    assert again.written == ()
    assert {f: (f.stat().st_mtime_ns, f.stat().st_ino) for f in landing.rglob("*") if f.is_file()} == before
    damaged = next(iter(before))
    right = damaged.read_bytes()
    damaged.write_bytes(right[:100])
    repaired = sample_data.write(landing, DAYS, target_bytes=SMALL)
    assert repaired.written == (str(damaged.relative_to(landing)),)
    assert damaged.read_bytes() == right


def test_another_folder_gets_the_same_bytes(small, tmp_path):
    sample_data.write(tmp_path, DAYS, target_bytes=SMALL)
    assert hashes(tmp_path) == hashes(small[0])


def test_the_default_holds_at_least_40_mb(tmp_path):
    summary = sample_data.write(tmp_path, DAYS)
    assert summary.total_bytes >= 40_000_000
    by_day = [sum(f.stat().st_size for f in tmp_path.glob(f"*/{day}/*")) for day in DAYS]
    assert max(by_day) < 1.3 * min(by_day)


def test_copies_of_one_file_come_together():
    taken = [c for c in sample_data._candidates() if c.uri.endswith(("packaging/_parser.py", "packaging/_tokenizer.py"))]
    assert len(taken) > 2  # vendored copies exist wherever setuptools is installed
    assert len({c.order for c in taken}) == 2


def test_progress_ends_complete(tmp_path):
    seen = []
    sample_data.write(tmp_path, DAYS[:1], target_bytes=500_000, progress=lambda done, total, text: seen.append((done, total, text)))
    assert seen[-1][0] == seen[-1][1] == 500_000


@pytest.mark.parametrize("days", [(), ("2026-11-01", "2026-11-01"), ("tomorrow",)])
def test_days_must_be_distinct_dates(tmp_path, days):
    with pytest.raises(MoelineError):
        sample_data.write(tmp_path, days)
    assert not list(tmp_path.iterdir())


def metadata(**fields: str | list[str]) -> Message:
    message = Message()
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License_Expression": "MIT OR Apache-2.0", "License": "BSD"}, "MIT OR Apache-2.0"),
        ({"License": "Apache 2.0"}, "Apache-2.0"),
        ({"License": "BSD 3-Clause License\n\nCopyright (c) somebody"}, "BSD-3-Clause"),
        ({"License": "BSD"}, None),
        ({"Classifier": ["License :: OSI Approved :: MIT License", "Topic :: Software"]}, "MIT"),
        ({"Classifier": ["License :: OSI Approved", "License :: OSI Approved :: ISC License (ISCL)"]}, "ISC"),
        ({"Classifier": ["License :: OSI Approved :: BSD License"]}, None),
        ({"Classifier": ["License :: OSI Approved :: MIT License", "License :: OSI Approved :: BSD License"]}, None),
        ({"License": "Copyright 2020, all rights reserved", "Classifier": ["License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)"]}, "MPL-2.0"),
        ({}, None),
    ],
)  # fmt: skip
def test_a_licence_is_stated_or_unknown_never_guessed(fields, expected):
    assert sample_data.spdx(metadata(**fields)) == expected


def test_the_summary_reads_as_a_sentence():
    summary = sample_data.SampleSummary(("a", "b"), ("a",), {"python-code": 1200}, {"python-code": 2_500_000})
    assert str(summary) == "1,200 python-code documents (2.5 MB) in 2 files, 1 of them new"
