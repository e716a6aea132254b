"""Pages of WARC and WET archives: FastWARC reads the records, Resiliparse takes the main text out of HTML.

Why these two: Apache-2.0, wheels, kept by the makers of ChatNoir; measured on 110 pages of documentation (2.7 MB, one core): Resiliparse
27.7 MB/s, trafilatura 1.2 MB/s. Resiliparse takes quadratic time in the nesting of blocks (8 s at 16,000), so that pages nested deeper than
``MAX_NESTING`` are not given to it. Decompression stays with jobs/services/streams.py, which bounds memory.
Change here: which records are pages, what becomes of HTML. Not here: what a document must have (jobs/services/readers.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jobs.services.streams import StreamBroken

MAX_NESTING = 1000
_BLOCK = re.compile(
    rb"<(/?)(?:address|article|aside|blockquote|center|d[dlt]|details|dialog|div|fieldset|fig(?:caption|ure)|footer|form|h[1-6]|header|hgroup|li|main|menu|nav"
    rb"|[ou]l|pre|section|table|tbody|t[dhr])\b",
    re.IGNORECASE,
)
_TRUNCATED = "truncated page"
_HTML = ("text/html", "application/xhtml+xml")


class Page(NamedTuple):
    """One archived page at ``offset`` of the decompressed archive; with ``error`` none that can be read, ``raw`` its first bytes."""

    offset: int
    uri: str = ""
    text: str = ""
    error: str | None = None
    raw: bytes = b""


class _Stream:
    """Bounded pieces as a file to read from. A break ends it and is kept, since what is raised inside the parser would not come out as itself."""

    def __init__(self, pieces: Iterable[bytes]):
        self._pieces = iter(pieces)
        self._held = b""
        self.position = 0
        self.broken: StreamBroken | None = None

    def read(self, size: int = -1) -> bytes:
        while not self._held:
            try:
                self._held = next(self._pieces)
            except StopIteration:
                return b""
            except StreamBroken as broken:
                self.broken, self._pieces = broken, iter(())
                return b""
        size = len(self._held) if size < 0 else size
        data, self._held = self._held[:size], self._held[size:]
        self.position += len(data)
        return data

    def tell(self) -> int:
        return self.position


def pages(pieces: Iterable[bytes], max_bytes: int) -> Iterator[Page]:
    """Responses (HTML or plain text) and conversions (plain text) of a decompressed archive; other records are skipped.

    Never raises for content: what cannot be read is a Page with an error, and a break ends the archive with one.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    stream = _Stream(pieces)
    wanted = WarcRecordType.response | WarcRecordType.conversion
    last = 0
    try:
        for record in ArchiveIterator(stream, record_types=wanted, parse_http=True, auto_decode="all", stream_detect=False):
            last = record.stream_pos
            page = _page(record, WarcRecordType, max_bytes)
            if stream.broken is None or not (page.error or "").startswith(_TRUNCATED):  # the break is told once, below
                yield page
    except Exception as error:  # parsers in other languages have errors of their own
        yield Page(last, error=f"broken WARC after {stream.position} decompressed bytes: {error}")
        return
    if stream.broken is not None:
        yield Page(last, error=f"{stream.broken} (after {stream.position} decompressed bytes)")


def _page(record: Any, types: Any, max_bytes: int) -> Page:
    uri = record.headers.get("WARC-Target-URI") or ""
    declared = record.content_length
    body = record.reader.read(max_bytes + 1)
    here = Page(record.stream_pos, uri, raw=body[:1024])
    if len(body) > max_bytes:
        return here._replace(error=f"page above max_document_bytes ({max_bytes})")
    if record.record_type == types.conversion:
        kind, charset, status = "text/plain", "utf-8", 200
    elif record.is_http and record.http_headers is not None:
        kind, charset, status = (record.http_content_type or _HTML[0]).lower(), record.http_charset, record.http_headers.status_code
        coded = any(record.http_headers.get(name) for name in ("Content-Encoding", "Transfer-Encoding"))
        declared = len(body) if coded else declared  # a coded body has another length once decoded
    else:
        return here._replace(error="a response that is no HTTP")
    refused = _refused(len(body), declared, status, kind)
    if refused:
        return here._replace(error=refused)
    try:
        return here._replace(text=_decoded(body, charset) if kind == "text/plain" else main_text(body, charset))
    except ValueError as error:
        return here._replace(error=str(error))


def _refused(n_bytes: int, declared: int, status: int | None, kind: str) -> str | None:
    """Why an answer is no page that can be read, from its headers."""
    if n_bytes < declared:
        return f"{_TRUNCATED}: {n_bytes} of {declared} bytes"
    if status is not None and not 200 <= status < 300:
        return f"HTTP status {status}"
    return None if kind in (*_HTML, "text/plain") else f"content type {kind[:80]!r} is no page"


def _decoded(body: bytes, charset: str | None) -> str:
    try:
        return body.decode(charset or "utf-8")
    except (LookupError, UnicodeDecodeError) as error:
        raise ValueError(f"invalid {charset or 'UTF-8'}: {error}") from None


def nesting(html: bytes) -> int:
    """How deep blocks are nested in each other, at most: tags counted, not parsed."""
    depth = deepest = 0
    for tag in _BLOCK.finditer(html):
        depth = max(0, depth - 1) if tag[1] else depth + 1
        deepest = max(deepest, depth)
    return deepest


def main_text(html: bytes, charset: str | None) -> str:
    """The main text of a page, without menus and footers. Raises ValueError when the page is nested too deep to be a page."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import detect_encoding
    from resiliparse.parse.html import HTMLTree

    deep = nesting(html)
    if deep > MAX_NESTING:
        raise ValueError(f"blocks nested {deep} deep (at most {MAX_NESTING})")
    tree = HTMLTree.parse_from_bytes(html, charset or detect_encoding(html) or "utf-8")
    return extract_plain_text(tree, main_content=True, preserve_formatting=True, alt_texts=False)
