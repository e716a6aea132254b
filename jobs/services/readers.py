"""Readers of landing files: JSONL, Parquet, WARC and text, plain or compressed, as records or as reasons why there is none.

Change here: formats, what counts as readable. Not here: pages of archives (warc.py), ids and tables (jobs/stages/ingest.py).
Content never raises and memory stays bounded by ``max_bytes`` whatever a file holds: what cannot be read becomes a Record with an ``error``. Only a file that
cannot be opened at all (an OSError) raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jobs.services.landing import StoreError, is_url, opened
from jobs.services.streams import Line, StreamBroken, chunks, lines

RAW_BYTES = 1024  # of an unreadable record, for a person to look at
_SNIFF_BYTES = 8192
_TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst")
_JSON_SUFFIXES = (".jsonl", ".ndjson")
_ARCHIVE_SUFFIXES = (".warc", ".wet")
_PARQUET_SUFFIXES = (".parquet", ".pq")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
READABLE = ", ".join((*(f"{s}(.gz|.zst)" for s in (*_JSON_SUFFIXES, *_ARCHIVE_SUFFIXES, *_TEXT_SUFFIXES)), *_PARQUET_SUFFIXES))


class Record(NamedTuple):
    """One document, or with ``error`` one stretch of input that is none.

    ``offset`` is the byte offset in the decompressed file (in Parquet: the row), -1 when the whole file is meant.
    """

    offset: int
    text: str = ""
    uri: str = ""
    licence: str | None = None
    error: str | None = None
    raw: bytes = b""


def read(path: str, relative: str, *, text_column: str, max_bytes: int) -> Iterator[Record]:
    """Records of the file at ``path`` in file order. ``relative`` names it in default uris (``<relative>#<line or row>``).

    The format follows from the name; an unknown one is one Record with an error, as is an empty file. Bad records do not stop
    the rest; a broken stream keeps the records before the break. Raises OSError when the file cannot be opened.
    """
    name = relative.lower()
    compression = next((kind for suffix, kind in _COMPRESSIONS.items() if name.endswith(suffix)), None)
    stem = name.rsplit(".", 1)[0] if compression else name
    if stem.endswith(_PARQUET_SUFFIXES) and compression is None:
        found = _parquet(path, relative, text_column, max_bytes)
    elif stem.endswith(_JSON_SUFFIXES):
        found = _jsonl(path, relative, compression, text_column, max_bytes)
    elif stem.endswith(_ARCHIVE_SUFFIXES):
        found = _warc(path, relative, compression, max_bytes)
    elif stem.endswith(_TEXT_SUFFIXES):
        found = _text(path, relative, compression, max_bytes)
    else:
        found = iter((Record(-1, error=f"unknown file type; readable are {READABLE}", raw=_head(path)),))
    nothing = True
    for record in found:
        nothing = False
        yield record
    if nothing:
        yield Record(-1, error="empty file: no records", raw=_head(path))


def _head(path: str) -> bytes:
    with opened(path) as handle:
        return handle.read(RAW_BYTES)


def _bad(offset: int, error: str, raw: bytes | str | None) -> Record:
    shown = raw.encode(errors="backslashreplace") if isinstance(raw, str) else raw or b""
    return Record(offset, error=error, raw=shown[:RAW_BYTES])


def _document(offset: int, where: str, values: Callable[[str], Any], text_column: str, max_bytes: int) -> Record:
    """The record of one row; ``values`` looks a field up, None when missing."""
    text = values(text_column)
    if not isinstance(text, str):
        found = "missing or null" if text is None else f"of type {type(text).__name__}"
        return _bad(offset, f"field {text_column!r} must be text, it is {found}", None)
    if not text.strip():
        return _bad(offset, f"field {text_column!r} is empty", text)
    licence = values("licence")
    licence = values("license") if licence is None else licence
    if isinstance(licence, list) and licence and all(isinstance(part, str) and part.strip() for part in licence):
        licence = " AND ".join(f"({part.strip()})" if " " in part.strip() else part.strip() for part in licence)  # all of them bind
    if licence is not None and not isinstance(licence, str):
        return _bad(offset, f"field 'licence' must be text, it is of type {type(licence).__name__}", text)  # unknown would be laxer than what was said
    uri = values("uri") or values("url")
    uri = uri.strip() if isinstance(uri, str) and uri.strip() else where
    try:
        n_bytes = len(text) if text.isascii() else len(text.encode())
        uri.encode()
        (licence or "").encode()
    except UnicodeEncodeError as error:
        return _bad(offset, f"lone surrogate at character {error.start}: not text in any encoding", text[:RAW_BYTES])
    if n_bytes > max_bytes:
        return _bad(offset, f"text of {n_bytes} bytes is above max_document_bytes ({max_bytes})", text[:RAW_BYTES])
    return Record(offset, text, uri, (licence or "").strip() or None)


def _jsonl(path: str, relative: str, compression: str | None, text_column: str, max_bytes: int) -> Iterator[Record]:
    start = bytearray()

    def watched() -> Iterator[bytes]:
        for piece in chunks(path, compression):
            if len(start) < _SNIFF_BYTES:
                start.extend(piece[:_SNIFF_BYTES])
            yield piece

    try:
        for line in lines(watched(), max_bytes, keep=RAW_BYTES):
            if line.data is not None and not line.data.strip():
                continue
            record = _json_record(line, relative, text_column, max_bytes)
            if record.error and line.offset == 0 and b"\0" in start:  # else every line break in it would be a row of the quarantine
                yield _bad(-1, "binary data, not JSON lines", bytes(start[:RAW_BYTES]))
                return
            yield record
    except StreamBroken as broken:
        yield _bad(broken.offset, str(broken), broken.pending)


def _json_record(line: Line, relative: str, text_column: str, max_bytes: int) -> Record:
    if line.data is None:
        return _bad(line.offset, f"line of {line.length} bytes is above max_document_bytes ({max_bytes})", line.head)
    try:
        row = json.loads(line.data.decode("utf-8-sig" if line.number == 1 else "utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return _bad(line.offset, f"invalid UTF-8 at byte {error.start} of the line: {error.reason}", line.data)
    except (ValueError, RecursionError) as error:
        return _bad(line.offset, f"invalid JSON: {str(error) or type(error).__name__}", line.data)
    if isinstance(row, _Object) and (twice := row.twice & {text_column, "uri", "url", "licence", "license"}):
        return _bad(line.offset, f"field {sorted(twice)[0]!r} is there twice", line.data)
    if not isinstance(row, dict):
        return _bad(line.offset, f"a JSON object was expected, found {type(row).__name__}", line.data)
    record = _document(line.offset, f"{relative}#{line.number}", row.get, text_column, max_bytes)
    return record._replace(raw=line.head) if record.error else record


class _Object(dict[str, Any]):
    """A JSON object in which keys are there ``twice``: parsers differ in which one counts."""

    twice: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    found, seen = _Object(row), set()
    found.twice = frozenset(key for key, _ in pairs if key in seen or seen.add(key))
    return found


def _text(path: str, relative: str, compression: str | None, max_bytes: int) -> Iterator[Record]:
    """A text file is one document."""
    data = bytearray()
    try:
        for chunk in chunks(path, compression):
            data += chunk
            if len(data) > max_bytes:
                yield _bad(-1, f"text above max_document_bytes ({max_bytes})", bytes(data[:RAW_BYTES]))
                return
    except StreamBroken as broken:  # half a document is not a document
        yield _bad(broken.offset, str(broken), bytes(data[:RAW_BYTES]))
        return
    if not data:
        return
    if b"\0" in data[:_SNIFF_BYTES]:
        yield _bad(-1, "binary data, not text", bytes(data[:RAW_BYTES]))
        return
    try:
        row = {"text": data.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        yield _bad(error.start, f"invalid UTF-8 at byte {error.start}: {error.reason}", bytes(data[error.start :][:RAW_BYTES]))
        return
    yield _document(0, f"{relative}#1", row.get, "text", max_bytes)


def _warc(path: str, relative: str, compression: str | None, max_bytes: int) -> Iterator[Record]:
    from jobs.services import warc

    for page in warc.pages(chunks(path, compression), max_bytes):
        if page.error is not None:
            yield _bad(page.offset, page.error, page.raw)
            continue
        row = {"text": page.text, "uri": page.uri}
        yield _document(page.offset, f"{relative}#{page.offset}", row.get, "text", max_bytes)


def _parquet(path: str, relative: str, text_column: str, max_bytes: int) -> Iterator[Record]:
    with opened(path) as handle:  # a missing file is the environment's fault, not the content's
        if handle.seek(0, 2) == 0:
            return
        yield from _parquet_rows(handle if is_url(path) else path, path, relative, text_column, max_bytes)


def _parquet_rows(source: Any, path: str, relative: str, text_column: str, max_bytes: int) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as file:
            schema = file.schema_arrow
            problem = _wrong_columns(schema, text_column)
            if problem:
                yield _bad(-1, problem, _head(path))
                return
            wanted = [name for name in (text_column, "uri", "url", "licence", "license") if name in schema.names]
            for batch in file.iter_batches(batch_size=64, columns=wanted, use_threads=False):
                columns = {name: _undecoded(batch.column(name)) for name in wanted}
                for i in range(batch.num_rows):
                    yield _parquet_record(columns, i, row, f"{relative}#{row}", text_column, max_bytes)
                    row += 1
            if row != file.metadata.num_rows:  # pages that are gone are no error to Arrow
                raise ValueError(f"the file says it has {file.metadata.num_rows} rows")
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield _bad(row if row else -1, f"broken Parquet from row {row} on: {reason.replace(path, relative)}", _head(path))


def _wrong_columns(schema: Any, text_column: str) -> str | None:
    import pyarrow.types as t

    if schema.names.count(text_column) != 1:
        return f"no column {text_column!r}, found {', '.join(schema.names) or 'none'}"
    found = schema.field(text_column).type
    kind = found.value_type if t.is_dictionary(found) else found
    if not (t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind) or t.is_binary(kind) or t.is_large_binary(kind)):
        return f"column {text_column!r} must be text, it is {found}"
    return None


def _undecoded(column: Any) -> Any:
    """Text as bytes: Parquet strings may hold invalid UTF-8, which is then the fault of one row and not of the file."""
    import pyarrow as pa
    import pyarrow.types as t

    if t.is_dictionary(column.type):
        column = column.dictionary_decode()
    if t.is_string_view(column.type):
        column = column.cast(pa.large_string())
    return column.cast(pa.large_binary()) if t.is_string(column.type) or t.is_large_string(column.type) else column


def _parquet_record(columns: dict[str, Any], i: int, row: int, where: str, text_column: str, max_bytes: int) -> Record:
    def value(name: str) -> Any:
        found = columns[name][i].as_py() if name in columns else None
        return found.decode() if isinstance(found, bytes) else found

    try:
        return _document(row, where, value, text_column, max_bytes)
    except UnicodeDecodeError as error:
        return _bad(row, f"invalid UTF-8 at byte {error.start}: {error.reason}", error.object)
