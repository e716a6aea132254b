"""Lines or paragraphs that other documents hold already: which ones a document loses, and what is left of it.

The rule is C4's (Raffel et al. 2020, JMLR 21:140, section 2.2: all but one of what occurs more than once are discarded; its code, tensorflow/datasets
text/c4_utils.py, does so line by line, in lower case, also within a page, and drops a page of which too little is left). Named differences:

- Where a passage stays: C4 takes the page with the smallest hash of its URL. Here documents that other days kept come first, then those of the
  day from the longest (n_bytes) to the shortest, ties by doc_id: the order in which the stage decides whole documents. The first
  ``repeats_max_documents`` documents that hold the passage keep it; C4's number is 1. Within one document only the first copy stays.
- White space is squeezed, too. Passages of fewer than ``repeats_min_words`` words never go (C4 has removed such lines before).
- Too little is fewer than ``repeats_min_words_left`` words (Gopher's least; C4 asks for 3 sentences, which source code has none of). A document
  that holds the first copy of what another one lost is kept however short it became, so that no passage leaves the corpus altogether.

A paragraph is a run of lines that are not blank; the blank lines after it go with it. Two passages count as one where 64-bit hashes agree.
Change here: what is a passage, who keeps it. Not here: who calls it (jobs/stages/deduplicate.py), numbers (DeduplicateConfig).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.config import DeduplicateConfig
from jobs.contract import Tools
from jobs.minhash import mix, text_hash

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

PASSAGE_BAND = -2  # of fingerprints: hashes of the passages that a kept document holds
_HELD = "doc_id string, n_bytes bigint, hash bigint"
_REMOVED = "array<struct<start:int,characters:int,hash:bigint,kept_interval:string,kept_doc_id:string>>"
_EDITED = f"doc_id string, text string, n_bytes bigint, removed_bytes bigint, too_short boolean, removed {_REMOVED}"
Keepers = Mapping[int, tuple[str, str]]  # hash of a passage -> (interval, doc_id) of the first document that holds it


@dataclass(frozen=True)
class Passage:
    """``start`` and ``end`` in characters; ``after``: where the next line begins that stays if this passage goes."""

    start: int
    end: int
    after: int
    hash: int


def passages(text: str, unit: str, min_words: int, seed: int = 0) -> list[Passage]:
    """The passages of a text that may be removed, in order. ``unit``: line or paragraph. Another ``seed`` (a source's) gives other hashes."""
    found, start, at, lines = [], -1, 0, text.split("\n")
    for line in [*lines, ""]:  # a last blank line ends the last paragraph
        blank = not line.strip()
        if unit == "line" and not blank:
            found.append([at, at + len(line), at + len(line) + 1])
        elif unit == "paragraph" and blank and start >= 0:
            found.append([start, at - 1, at])
            start = -1
        elif unit == "paragraph" and not blank and start < 0:
            start = at
        if blank and found and unit == "paragraph":
            found[-1][2] = at + len(line) + 1
        at += len(line) + 1
    long = [(text[a:b], a, b, c) for a, b, c in found if len(text[a:b].split()) >= min_words]
    return [Passage(a, b, min(c, len(text)), _seeded(text_hash(passage), seed)) for passage, a, b, c in long]


def _seeded(value: int, seed: int) -> int:
    import numpy as np

    return value if not seed else int(mix(mix(np.array([value], np.int64).view(np.uint64)) ^ np.uint64(seed)).view(np.int64)[0])


def without(text: str, found: list[Passage], keepers: Keepers, own: tuple[str, str]) -> tuple[str, list[dict[str, Any]]]:
    """The text without passages that have a keeper and without later copies of its own; and what was removed, with who holds it."""
    kept: set[int] = set()
    removed, pieces, at = [], [], 0
    for passage in found:
        if passage.hash not in keepers and passage.hash not in kept:
            kept.add(passage.hash)
            continue
        interval, doc_id = keepers.get(passage.hash, own)
        removed.append({
            "start": passage.start, "characters": passage.end - passage.start, "hash": passage.hash, "kept_interval": interval, "kept_doc_id": doc_id,
        })  # fmt: skip
        pieces.append(text[at : passage.start])
        at = passage.after
    return ("".join([*pieces, text[at:]]).strip("\n"), removed) if removed else (text, [])


def held(unique: DataFrame, config: DeduplicateConfig, tools: Tools) -> DataFrame:
    """(doc_id, n_bytes, hash) of every passage that a document of the day holds, once per document."""

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield _held(batch, config)

    partitions = int(tools.spark.conf.get("spark.sql.shuffle.partitions"))
    return unique.select("doc_id", "n_bytes", "source", "text").repartition(partitions, "doc_id").mapInArrow(read, _HELD)


def _held(batch: pa.RecordBatch, config: DeduplicateConfig) -> pa.RecordBatch:
    import pyarrow as pa

    rows: list[tuple[str, int, int]] = []
    for doc_id, n_bytes, source, text in zip(*(batch.column(name).to_pylist() for name in ("doc_id", "n_bytes", "source", "text")), strict=True):
        rows += [(doc_id, n_bytes, value) for value in sorted({p.hash for p in _of(text, source, config)})]
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    types = (pa.string(), pa.int64(), pa.int64())
    return pa.RecordBatch.from_arrays([pa.array(c, t) for c, t in zip(columns, types, strict=True)], names=["doc_id", "n_bytes", "hash"])


def _of(text: str, source: str, config: DeduplicateConfig) -> list[Passage]:
    # As for whole documents, what one source says is compared with what the same source says: its name is mixed into the hash.
    seed = text_hash(source) & (1 << 64) - 1 if config.scope == "source" else 0
    return passages(text, config.repeats, config.repeats_min_words, seed)


def lost(held_here: DataFrame, fingerprints: DataFrame | None, config: DeduplicateConfig, interval: str) -> DataFrame:
    """(doc_id, hash, kept_interval, kept_doc_id): what a document loses, and the first one that holds it, on another day or this one."""
    from pyspark.sql import Window
    from pyspark.sql import functions as f

    order = Window.partitionBy("hash").orderBy(f.desc("n_bytes"), "doc_id")
    ranked = held_here.withColumns({"rank": f.row_number().over(order), "first_doc_id": f.first("doc_id").over(order)})
    if fingerprints is None:
        ranked = ranked.withColumns({"others": f.lit(0), "other": f.lit(None).cast("struct<interval:string,doc_id:string>")})
    else:
        named = f.struct("interval", "doc_id")
        there = fingerprints.where(f.col("band") == PASSAGE_BAND).groupBy("hash").agg(f.count(named).alias("others"), f.min(named).alias("other"))
        ranked = ranked.join(there, "hash", "left").fillna(0, ["others"])
    gone = ranked.where(f.col("rank") + f.col("others") > config.repeats_max_documents)
    keeper = f.coalesce("other", f.struct(f.lit(interval).alias("interval"), f.col("first_doc_id").alias("doc_id")))
    return gone.select("doc_id", "hash", keeper["interval"].alias("kept_interval"), keeper["doc_id"].alias("kept_doc_id"))


def edited(unique: DataFrame, gone: DataFrame, config: DeduplicateConfig, interval: str) -> DataFrame:
    """Every document that loses something (columns of _EDITED); ``too_short``: too little is left of it, and it is no one's first copy."""
    from pyspark.sql import functions as f

    here = gone.where(f.col("kept_interval") == interval).select(f.col("kept_doc_id").alias("doc_id")).distinct().withColumn("is_keeper", f.lit(True))
    taken = gone.groupBy("doc_id").agg(f.collect_list(f.struct("hash", "kept_interval", "kept_doc_id")).alias("keepers"))
    rows = unique.select("doc_id", "source", "text", "n_bytes").join(taken, "doc_id", "left").join(here, "doc_id", "left")

    def edit(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield _edited(batch, config, interval)

    return rows.mapInArrow(edit, _EDITED)


def _edited(batch: pa.RecordBatch, config: DeduplicateConfig, interval: str) -> pa.RecordBatch:
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    for row in batch.to_pylist():
        keepers = {k["hash"]: (k["kept_interval"], k["kept_doc_id"]) for k in row["keepers"] or ()}
        text, removed = without(row["text"], _of(row["text"], row["source"], config), keepers, (interval, row["doc_id"]))
        if removed:
            short = len(text.split()) < config.repeats_min_words_left and bool(keepers) and not row["is_keeper"]
            n_bytes = len(text.encode())
            rows.append({
                "doc_id": row["doc_id"], "text": text, "n_bytes": n_bytes, "removed_bytes": row["n_bytes"] - n_bytes, "too_short": short, "removed": removed
            })  # fmt: skip
    passage = [("start", pa.int32()), ("characters", pa.int32()), ("hash", pa.int64()), ("kept_interval", pa.string()), ("kept_doc_id", pa.string())]
    schema = pa.schema([
        ("doc_id", pa.string()), ("text", pa.string()), ("n_bytes", pa.int64()), ("removed_bytes", pa.int64()), ("too_short", pa.bool_()),
        ("removed", pa.list_(pa.struct(passage))),
    ])  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def keepers_of_dropped(changed: DataFrame) -> DataFrame:
    """(kept_interval, kept_doc_id, doc_id): for every document that became too short, the one that holds most of what it lost."""
    from pyspark.sql import functions as f

    own = changed.where("too_short").select("doc_id", f.explode("removed").alias("r")).where(f.col("r.kept_doc_id") != f.col("doc_id"))
    held_by = own.groupBy("doc_id", "r.kept_interval", "r.kept_doc_id").agg(f.sum("r.characters").alias("characters"))
    best = f.min(f.struct((-f.col("characters")).alias("rank"), "kept_interval", "kept_doc_id")).alias("best")
    return held_by.groupBy("doc_id").agg(best).select(f.col("best.kept_interval"), f.col("best.kept_doc_id"), "doc_id")
