"""Ingest: the files that landed for one day -> ``documents``; what cannot be read -> ``quarantine``, with reason and offset.

A record that a person asked to forget (`moeline forget`) is a row of ``quarantine`` without its bytes, wherever it lands again.
Change here: ids, what counts as the same record, metrics. Not here: file formats (jobs/services/readers.py), which files a day
has (jobs/inputs.py), columns (expectations/tables.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from jobs.config import IngestConfig
from jobs.contract import MoelineError, StageOutput, Tools
from jobs.services.readers import RAW_BYTES, Record, read

ENGINE = "spark"
READS: dict[str, str] = {}
WRITES = ("documents", "quarantine")
REVISION = 2

_BATCH_BYTES = 4 << 20
_MAX_TASKS = 256
_RECORDS = "doc_id string, source string, uri string, licence string, text string, n_bytes bigint, landed_file string, offset bigint, error string, raw binary"
_FORGOTTEN = "forgotten on request"
_REPEATED = "repeated record: same source, uri and text as an earlier one of the day"


def doc_id(source: str, uri: str, text: str) -> str:
    """Identity of a document: the first 32 hex digits of sha256 over source, uri and text, separated by NUL."""
    return hashlib.sha256("\0".join((source, uri, text)).encode()).hexdigest()[:32]


def run(config: IngestConfig, inputs: Mapping[str, Any], tools: Tools) -> StageOutput:
    """Read every landed file once; never fails because of content.

    Args:
        inputs: ``landing`` is a list of files with ``path``, ``source`` and ``relative``; ``forgotten`` (or None) names ``doc_ids`` and ``uris``.

    Raises:
        MoelineError: no file landed for the day (and the configured sources).
        OSError: a file disappeared or may not be read; Spark reports it as a failed task.
    """
    from pyspark.sql import functions as f

    landed = list(inputs.get("landing") or ())
    files = [file for file in landed if not config.sources or file.source in config.sources]
    if not files and not (inputs.get("forgotten") and not landed):  # a day of which every document was forgotten may have lost its files
        folder = f"landing/{{{','.join(config.sources)}}}" if config.sources else "landing/<source>"
        raise MoelineError(
            f"Nothing has landed for {tools.interval}: looked for files in {folder}/{tools.interval}/, found {len(landed)} file(s) of other sources. "
            "Put files there, or run `moeline sample-data`."
        )
    tools.progress(0, len(files), "reading files")
    descriptors = tools.spark.createDataFrame([(x.path, x.source, x.relative) for x in files], "path string, source string, relative string")
    forgotten = inputs.get("forgotten")
    refused = (forgotten.doc_ids, forgotten.uris) if forgotten else (frozenset(), frozenset())
    read_files = partial(_read_files, text_column=config.text_column, max_bytes=config.max_document_bytes, refused=refused)
    records = tools.materialise(descriptors.repartition(max(1, min(len(files), _MAX_TASKS))).mapInArrow(read_files, _RECORDS))
    tools.progress(len(files), len(files), "files read")

    good = records.where("error IS NULL")
    unreadable = records.where("error IS NOT NULL").select("landed_file", "offset", "error", "raw")
    # The order decides which of several equal records stays, so it must not depend on which worker was faster.
    place = f.struct("landed_file", "offset")
    repeated = good.groupBy("doc_id").agg(f.min(place).alias("first"), f.count(f.lit(1)).alias("times"), f.first("n_bytes").alias("each")).where("times > 1")
    extra = f.col("times") - 1
    again = repeated.agg(f.sum(extra).alias("records"), f.sum(extra * f.col("each")).alias("bytes")).collect()[0]
    if again["records"]:  # the usual day has none, and then no text needs to be shuffled
        good = good.join(repeated, "doc_id", "left").withColumn("is_first", f.coalesce(place == f.col("first"), f.lit(True)))
        head = f.encode(f.substring("text", 1, RAW_BYTES // 4), "UTF-8").alias("raw")
        unreadable = unreadable.unionByName(good.where("NOT is_first").select("landed_file", "offset", f.lit(_REPEATED).alias("error"), head))
        good = good.where("is_first")
    documents = good.select("doc_id", "source", "uri", "licence", "text", "n_bytes", "landed_file")
    quarantine = unreadable.withColumnRenamed("landed_file", "file")
    metrics = _metrics(len(files), records, again["records"] or 0, again["bytes"] or 0)
    return StageOutput({"documents": documents, "quarantine": quarantine}, metrics)


def _metrics(n_files: int, records: Any, repeated: int, repeated_bytes: int) -> dict[str, Any]:
    """Counts of the day. Reasons are grouped by their words before the first digit, quote or colon: a file can fill a table with numbers."""
    from pyspark.sql import functions as f

    reason = f.trim(f.regexp_extract("error", r"^[^\d':]*", 0)).alias("reason")
    counted = records.groupBy(reason).agg(f.count(f.lit(1)).alias("n"), f.sum("n_bytes").alias("bytes")).collect()
    documents = [row for row in counted if row["reason"] is None]
    reasons = {row["reason"]: row["n"] for row in counted if row["reason"] is not None}
    if repeated:
        reasons["repeated record"] = repeated
    return {
        "files": n_files,
        "documents": sum(row["n"] for row in documents) - repeated,
        "bytes": sum(row["bytes"] for row in documents) - repeated_bytes,
        "quarantined": sum(reasons.values()),
        "quarantine_reasons": dict(sorted(reasons.items())),
    }


def _read_files(batches: Iterable[Any], *, text_column: str, max_bytes: int, refused: tuple[frozenset[str], frozenset[str]]) -> Iterator[Any]:
    """Arrow batches of file descriptors -> Arrow batches of records, each of bounded size. ``refused``: doc_ids, and sha256 of uris."""
    for batch in batches:
        for file in batch.to_pylist():
            records = read(file["path"], file["relative"], text_column=text_column, max_bytes=max_bytes)
            yield from _batched(_row(record, file, *refused) for record in records)


def _row(record: Record, file: Mapping[str, str], doc_ids: frozenset[str], uris: frozenset[str]) -> tuple[Any, ...]:
    where = (file["relative"], record.offset)
    if record.error is not None:
        return (None, file["source"], None, None, None, None, *where, record.error, record.raw[:RAW_BYTES])
    n_bytes = len(record.text) if record.text.isascii() else len(record.text.encode())
    identity = doc_id(file["source"], record.uri, record.text)
    if identity in doc_ids or (uris and hashlib.sha256(record.uri.encode()).hexdigest() in uris):
        return (None, file["source"], None, None, None, None, *where, _FORGOTTEN, b"")
    return (identity, file["source"], record.uri, record.licence, record.text, n_bytes, *where, None, None)


def _batched(rows: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    import pyarrow as pa

    types = {"string": pa.string(), "bigint": pa.int64(), "binary": pa.binary()}
    schema = pa.schema([(name, types[kind]) for name, kind in (column.split() for column in _RECORDS.split(", "))])

    def batch() -> Any:
        return pa.record_batch([pa.array(column, field.type) for column, field in zip(zip(*held, strict=True), schema, strict=True)], schema=schema)

    held: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        held.append(row)
        size += (row[5] or 0) + RAW_BYTES
        if size >= _BATCH_BYTES:
            yield batch()
            held, size = [], 0
    if held:
        yield batch()
