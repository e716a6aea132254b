"""Readers: real files of every format, whole and broken in every way a bad day brings."""

from __future__ import annotations

import gzip
import json
import os
import random
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from jobs.services.readers import RAW_BYTES, Record, read

LIMIT = 100_000
ROWS = [{"text": f"document {i} with some text", "uri": f"test:{i}", "licence": "MIT"} for i in range(500)]
JSONL = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def records(tmp_path: Path, name: str, content: bytes, **kwargs) -> list[Record]:
    path = tmp_path / name
    path.write_bytes(content)
    return list(read(str(path), f"web/2026-11-01/{name}", **{"text_column": "text", "max_bytes": LIMIT, **kwargs}))


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # damage that can be repeated


def split(found: list[Record]) -> tuple[list[Record], list[Record]]:
    return [r for r in found if r.error is None], [r for r in found if r.error is not None]


def zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(content)


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zst)])
def test_jsonl_is_read_in_order_with_offsets_into_the_decompressed_file(tmp_path, suffix, pack):
    found = records(tmp_path, f"a.jsonl{suffix}", pack(JSONL))
    assert [(r.text, r.uri, r.licence, r.error) for r in found] == [(row["text"], row["uri"], "MIT", None) for row in ROWS]
    assert all(json.loads(JSONL[r.offset :].split(b"\n")[0])["uri"] == r.uri for r in found)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zst)])
def test_several_compressed_parts_in_one_file_are_one_stream(tmp_path, suffix, pack):
    found = records(tmp_path, f"a.jsonl{suffix}", pack(JSONL[:777]) + pack(b"") + pack(JSONL[777:]))
    assert [r.text for r in found] == [row["text"] for row in ROWS]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zst)])
def test_a_truncated_stream_keeps_the_records_before_the_break(tmp_path, suffix, pack):
    noise = seeded(1)
    rows = [{"text": "".join(noise.choices("abcdefghij ", k=400))} for _ in range(1500)]
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    packed = pack(content)
    good, bad = split(records(tmp_path, f"a.jsonl{suffix}", packed[: len(packed) // 2]))
    assert 300 < len(good) < 1200
    assert [r.text for r in good] == [row["text"] for row in rows[: len(good)]]
    assert len(bad) == 1
    assert "truncated" in bad[0].error
    assert bad[0].offset == sum(len(json.dumps(row)) + 1 for row in rows[: len(good)])
    assert content[bad[0].offset :].startswith(bad[0].raw)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zst)])
def test_a_corrupt_stream_is_one_quarantined_record(tmp_path, suffix, pack):
    packed = bytearray(pack(os.urandom(1000).hex().encode() * 50 + b"\n" + JSONL * 3))
    packed[len(packed) // 2] ^= 0xFF
    _, bad = split(records(tmp_path, f"a.jsonl{suffix}", bytes(packed)))
    assert any(f"broken {'gzip' if suffix == '.gz' else 'zstd'}" in r.error for r in bad)


def test_junk_after_a_gzip_member_is_quarantined_and_zero_padding_is_not(tmp_path):
    good, bad = split(records(tmp_path, "a.jsonl.gz", gzip.compress(JSONL) + b"junk"))
    assert (len(good), len(bad)) == (500, 1)
    good, bad = split(records(tmp_path, "b.jsonl.gz", gzip.compress(JSONL) + b"\0" * 512))
    assert (len(good), len(bad)) == (500, 0)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.zst", "a.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_one_quarantined_record(tmp_path, name):
    found = records(tmp_path, name, b"just some text\nof two lines\n")
    assert len(found) == 1
    assert found[0].error.startswith(("broken ", "truncated "))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.md", "a.txt.gz"])
def test_an_empty_file_is_quarantined_as_such(tmp_path, name):
    assert [(r.offset, r.error) for r in records(tmp_path, name, b"")] == [(-1, "empty file: no records")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "invalid JSON"), (b"[" * 50_000, "invalid JSON"), (b'{"text": ' + b"9" * 5000 + b"}", "invalid JSON"), (b"plain text", "invalid JSON"),
        (b"[1, 2]", "a JSON object was expected, found list"), (b"null", "found NoneType"),
        (b"{}", "missing or null"), (b'{"text": null}', "missing or null"), (b'{"text": 5}', "type int"), (b'{"text": ["a"]}', "type list"),
        (b'{"text": ""}', "is empty"), (b'{"text": " \\n\\t"}', "is empty"), (b'{"text": "\xff\xfe"}', "invalid UTF-8 at byte 10"),
        (b'{"text": "a\\ud800"}', "lone surrogate"), (b'{"text": "a", "uri": "\\udfff"}', "lone surrogate"),
        (b'{"text": "a", "licence": 3}', "'licence' must be text"), (b'{"text": "' + b"x" * LIMIT + b'"}', "is above max_document_bytes"),
        (b'{"text": "' + b"\\u20ac" * (LIMIT // 6 - 10) + b'"}', None),
    ],
)  # fmt: skip
def test_an_unreadable_line_is_quarantined_alone(tmp_path, line, reason):
    first, last = b'{"text": "first"}\n', b'{"text": "last"}\n'
    good, bad = split(records(tmp_path, "a.jsonl", first + line + b"\n" + last))
    assert [r.text for r in good if len(r.text) < 10] == ["first", "last"]
    if reason is None:
        assert not bad
    else:
        assert [(reason in r.error, r.offset, r.raw) for r in bad] == [(True, len(first), line[:RAW_BYTES])]


def test_blank_lines_a_byte_order_mark_and_a_missing_last_newline_are_no_errors(tmp_path):
    found = records(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n\n  \r\n{"text": "b"}\r\n{"text": "c"}')
    assert [(r.text, r.error) for r in found] == [("a", None), ("b", None), ("c", None)]


def test_fields_have_defaults(tmp_path):
    lines = [{"text": "a"}, {"text": "b", "url": "https://x"}, {"text": "c", "uri": 7, "license": "MIT"}, {"text": "d", "licence": ["MIT", "ISC OR 0BSD"]}]
    found = records(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)).encode())
    here = "web/2026-11-01/a.jsonl"
    assert [(r.uri, r.licence) for r in found] == [
        (f"{here}#1", None), ("https://x", None), (f"{here}#3", "MIT"), (f"{here}#4", "MIT AND (ISC OR 0BSD)"),
    ]  # fmt: skip


def test_another_text_column_can_be_configured(tmp_path):
    assert [r.text for r in records(tmp_path, "a.jsonl", b'{"body": "x", "text": "y"}\n', text_column="body")] == ["x"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_binary_junk_is_one_quarantined_record(tmp_path, name):
    found = records(tmp_path, name, seeded(2).randbytes(50_000))
    assert len(found) == 1
    assert found[0].error.startswith("binary data")
    assert len(found[0].raw) <= RAW_BYTES


def test_binary_junk_inside_a_file_does_not_stop_the_rest(tmp_path):
    good, bad = split(records(tmp_path, "a.jsonl", JSONL + seeded(3).randbytes(20_000) + b"\n" + JSONL))
    assert len(good) == 1000
    assert bad


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zst)])
def test_a_50_mb_line_is_skipped_in_bounded_memory(tmp_path, suffix, pack):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(b'{"text": "before"}\n' + b'{"text": "' + b"x" * 50_000_000 + b'"}\n' + b'{"text": "after"}\n'))
    tracemalloc.start()
    found = list(read(str(path), path.name, text_column="text", max_bytes=1_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [r.text for r in found] == ["before", "", "after"]
    assert found[1].error == "line of 50000012 bytes is above max_document_bytes (1000000)"
    assert found[1].offset == 19
    assert len(found[1].raw) == RAW_BYTES
    assert peak < 80_000_000 if suffix == ".zst" else peak < 8_000_000  # zstd: at most 32 MiB per piece of input, twice


@pytest.mark.parametrize("name", ["a.txt", "README.md", "b.rst.gz"])
def test_a_text_file_is_one_document(tmp_path, name):
    content = "# Title\n\nSome text: é\n".encode()
    found = records(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)
    assert found == [Record(0, content.decode(), f"web/2026-11-01/{name}#1")]


@pytest.mark.parametrize(
    ("content", "reason"), [(b"ok \xff", "invalid UTF-8 at byte 3"), (b"x" * (LIMIT + 1), "above max_document_bytes"), (b" \n", "is empty")]
)
def test_an_unreadable_text_file_is_quarantined(tmp_path, content, reason):
    found = records(tmp_path, "a.md", content)
    assert len(found) == 1
    assert reason in found[0].error


def parquet(tmp_path: Path, table: pa.Table, **kwargs) -> bytes:
    pq.write_table(table, tmp_path / "made", **kwargs)
    return (tmp_path / "made").read_bytes()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_rows_are_documents_and_bad_rows_are_quarantined_alone(tmp_path, kind):
    texts = ["one", None, "", "four"]
    table = pa.table({"text": pa.array(texts).cast(kind), "url": ["u1", "u2", "u3", None], "license": ["MIT", None, None, None], "n": [1, 2, 3, 4]})
    good, bad = split(records(tmp_path, "a.parquet", parquet(tmp_path, table)))
    assert [(r.offset, r.text, r.uri, r.licence) for r in good] == [(0, "one", "u1", "MIT"), (3, "four", "web/2026-11-01/a.parquet#3", None)]
    assert [(r.offset, r.error) for r in bad] == [(1, "field 'text' must be text, it is missing or null"), (2, "field 'text' is empty")]


def test_invalid_utf8_in_a_parquet_string_is_the_fault_of_its_row(tmp_path):
    column = pa.array([b"good", b"bad \xff", b"good too"], pa.binary()).view(pa.string())
    good, bad = split(records(tmp_path, "a.parquet", parquet(tmp_path, pa.table({"text": column}))))
    assert [r.text for r in good] == ["good", "good too"]
    assert [(r.offset, r.raw) for r in bad] == [(1, b"bad \xff")]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (pa.table({"body": ["a"], "id": [1]}), "no column 'text', found body, id"),
        (pa.table({"text": [1, 2]}), "column 'text' must be text, it is int64"),
        (pa.table({"text": [["a"]]}), "column 'text' must be text, it is list"),
    ],
)
def test_wrong_parquet_columns_quarantine_the_file(tmp_path, table, reason):
    found = records(tmp_path, "a.parquet", parquet(tmp_path, table))
    assert [(r.offset, reason in r.error) for r in found] == [(-1, True)]


def test_a_parquet_file_broken_in_the_middle_keeps_the_rows_before(tmp_path):
    noise = seeded(4)
    table = pa.table({"text": ["".join(noise.choices("abcdefgh", k=500)) for _ in range(4000)]})
    content = bytearray(parquet(tmp_path, table, row_group_size=1000, use_dictionary=False, compression="zstd"))
    where = len(content) * 5 // 8
    content[where : where + 2000] = os.urandom(2000)
    good, bad = split(records(tmp_path, "a.parquet", bytes(content)))
    assert [r.text for r in good] == table["text"].to_pylist()[: len(good)]
    assert len(good) >= 1000
    assert [r.offset for r in bad] == [len(good)]
    assert str(tmp_path) not in bad[0].error


@pytest.mark.parametrize("cut", [3, 100, -1])
def test_a_truncated_parquet_file_is_quarantined(tmp_path, cut):
    content = parquet(tmp_path, pa.table({"text": ["text"] * 2000}))
    assert [r.error is not None for r in records(tmp_path, "a.parquet", content[:cut])] == [True]


@pytest.mark.parametrize("name", ["a.exe", "noext", "a.csv", "a.zst", "a.parquet.gz"])
def test_an_unknown_file_type_is_quarantined_and_says_what_is_readable(tmp_path, name):
    found = records(tmp_path, name, b"content")
    assert [(r.offset, r.raw) for r in found] == [(-1, b"content")]
    assert "readable are .jsonl(.gz|.zst)" in found[0].error


def test_a_file_that_is_gone_is_not_content(tmp_path):
    for name in ("a.jsonl", "a.parquet", "a.txt.gz", "a.unknown"):
        with pytest.raises(FileNotFoundError):
            list(read(str(tmp_path / name), name, text_column="text", max_bytes=LIMIT))


def test_no_bytes_make_a_reader_fail(tmp_path):
    noise = seeded(5)
    packed = {".jsonl": JSONL, ".jsonl.gz": gzip.compress(JSONL), ".jsonl.zst": zst(JSONL), ".parquet": parquet(tmp_path, pa.table({"text": ["abc"] * 900}))}
    for suffix, content in packed.items():
        for _ in range(40):
            damaged = bytearray(content)
            for _ in range(noise.randint(1, 6)):
                damaged[noise.randrange(len(damaged))] = noise.randrange(256)
            found = records(tmp_path, f"a{suffix}", bytes(damaged[: noise.randint(1, len(damaged))]))
            assert found
            assert all(len(r.raw) <= RAW_BYTES for r in found)
