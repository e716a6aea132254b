"""WARC and WET archives: pages read right, everything else quarantined with a reason, hostile archives in bounded time."""

from __future__ import annotations

import gzip
import time

import pytest

from jobs.services.readers import RAW_BYTES, Record, read

pytest.importorskip("fastwarc", reason="fastwarc is not installed: run `make setup`")
pytest.importorskip("resiliparse", reason="resiliparse is not installed: run `make setup`")
LIMIT = 1_000_000
HTML = (
    b"<html><head><title>T</title><script>var x = 1;</script></head><body><nav><a href=/>Home</a></nav><main><h1>A heading</h1>"
    b"<p>The main text of this page is long enough to be a paragraph, one would think.</p></main><footer>imprint</footer></body></html>"
)
TEXT = "A heading\n\nThe main text of this page is long enough to be a paragraph, one would think."


def record(
    kind: str, uri: str, body: bytes, *, content_type: str | None = "text/html; charset=utf-8", status: int = 200, length: int | None = None, more: str = ""
) -> bytes:
    if content_type is not None:
        body = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\n{more}\r\n".encode() + body
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nContent-Type: {'application/http' if content_type else 'text/plain'}\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body + b"\r\n\r\n"


FIRST, LAST = record("response", "http://a.test/first", HTML), record("response", "http://a.test/last", HTML)


def records(tmp_path, content: bytes, name: str = "a.warc") -> list[Record]:
    (tmp_path / name).write_bytes(content)
    return list(read(str(tmp_path / name), f"web/2026-11-01/{name}", text_column="text", max_bytes=LIMIT))


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_responses_are_documents_and_other_records_are_not(tmp_path, name):
    archive = [
        record("warcinfo", "", b"x", content_type=None),
        record("request", "http://a.test/", b"GET"),
        FIRST,
        record("metadata", "", b"x", content_type=None),
        LAST,
    ]
    found = records(tmp_path, b"".join(map(gzip.compress, archive)) if name.endswith("gz") else b"".join(archive), name)
    assert [(r.text, r.uri, r.error) for r in found] == [(TEXT, "http://a.test/first", None), (TEXT, "http://a.test/last", None)]
    assert [r.offset for r in found] == [len(archive[0] + archive[1]), len(b"".join(archive[:4]))]


def test_plain_text_and_extracted_text_are_read_as_they_are(tmp_path):
    found = records(tmp_path, record("conversion", "http://a.test/", "é line\nand <b>another".encode(), content_type=None), "a.warc.wet")
    assert [(r.text, r.error) for r in found] == [("é line\nand <b>another", None)]
    found = records(tmp_path, record("response", "http://a.test/", b"just text", content_type="text/plain"))
    assert [(r.text, r.error) for r in found] == [("just text", None)]


def test_pages_read_ahead_of_a_break_are_kept(tmp_path):
    content = gzip.compress(FIRST * 300)
    found = records(tmp_path, content[: len(content) - 12], "a.warc.gz")
    assert len([r for r in found if r.text == TEXT]) >= 290
    assert [r.error[:14] for r in found if r.error] == ["truncated gzip"]


def test_the_charset_of_the_answer_is_used(tmp_path):
    body = "<p>Grüße an alle Leser dieser schönen Seite.</p>".encode("latin-1")
    assert [r.text for r in records(tmp_path, record("response", "u:1", body, content_type="text/html; charset=iso-8859-1"))] == [
        "Grüße an alle Leser dieser schönen Seite."
    ]


def test_a_compressed_body_is_decoded(tmp_path):
    found = records(tmp_path, record("response", "u:1", gzip.compress(HTML), more="Content-Encoding: gzip\r\n"))
    assert [(r.text, r.error) for r in found] == [(TEXT, None)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record("response", "u:1", b"", status=404), "HTTP status 404"),
        (record("response", "u:1", b"%PDF", content_type="application/pdf"), "content type 'application/pdf' is no page"),
        (record("response", "u:1", b"caf\xe9", content_type="text/plain"), "invalid UTF-8"),
        (record("response", "u:1", b"x", content_type="text/plain; charset=klingon"), "invalid klingon"),
        (record("response", "u:1", b"<p></p>"), "field 'text' is empty"),
        (record("response", "u:1", b"x" * (LIMIT + 1)), "page above max_document_bytes"),
        (record("response", "u:1", b"<div>" * 100_000), "blocks nested 100000 deep"),
        (record("response", "u:1", b"<div>" * 50_000 + b"x" + b"</div>" * 50_000), "blocks nested 50000 deep"),
    ],
)  # fmt: skip
def test_a_page_that_cannot_be_read_is_quarantined_alone(tmp_path, bad, reason):
    start = time.process_time()
    found = records(tmp_path, FIRST + bad + LAST)
    assert [r.text for r in found if r.error is None] == [TEXT, TEXT]
    assert [(r.offset, r.error[: len(reason)]) for r in found if r.error] == [(len(FIRST), reason)]
    assert all(len(r.raw) <= RAW_BYTES for r in found)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("name", "content", "n_texts", "reason"),
    [
        ("a.warc", b"", 0, "empty file"), ("a.warc", b"no archive at all\n" * 9, 0, "broken WARC"), ("a.warc", b"\0" * 5000, 0, ("broken WARC", "empty file")),
        ("a.warc", FIRST + LAST[:-40], 1, "truncated page"), ("a.warc", FIRST + record("response", "u", HTML, length=10**15), 1, "truncated page"),
        ("a.warc.gz", gzip.compress(FIRST) + gzip.compress(LAST)[:-60], 1, "truncated gzip"), ("a.warc.gz", FIRST, 0, "broken gzip"),
    ],
)  # fmt: skip
def test_a_broken_archive_keeps_the_pages_before_the_break(tmp_path, name, content, n_texts, reason):
    found = records(tmp_path, content, name)
    assert [r.text for r in found if r.error is None] == [TEXT] * n_texts
    assert [r.error.startswith(reason) for r in found if r.error] == [True], found


@pytest.mark.parametrize("piece", [b"<p>", b"<b>", b"<svg>", b"<table><tr><td>", b"<", b"<a href='", b"<!--", b"&#x110000;", b"<ul><li>", b"</div>"])
def test_hostile_html_takes_bounded_time(tmp_path, piece):
    start = time.process_time()
    assert records(tmp_path, record("response", "u:1", piece * (200_000 // len(piece)) + b"x"))
    assert time.process_time() - start < 4
