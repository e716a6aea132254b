"""Deduplicate: keep one of every group of equal or nearly equal documents, of this day and against what other days kept.

Change here: what counts as a duplicate and which copy survives. Not here: hashing and similarity (jobs/minhash.py), thresholds
(DeduplicateConfig in jobs/config.py).

The rule, in this order:
1. Exact. Documents whose normalised text (lower case, white space squeezed) has the same 64-bit hash are one; the survivor is the
   longest (n_bytes), then the one with the smallest doc_id. If another day kept the same text, that one survives instead. Texts too
   short for a shingle are compared in this way only.
2. Near. Survivors of 1 that share an LSH band with another one, or with a document kept on another day, are candidates. In a
   bucket of more than _HUBS documents each is compared with its first _HUBS only, so that a huge bucket costs linear, not quadratic
   work. Every candidate pair is verified: true Jaccard similarity of the shingle sets of both texts, at least ``min_jaccard``, or by
   the recipe's choice true containment of the smaller set in the larger, at least ``min_containment``.
3. Stars, not chains. Documents are decided from the longest to the shortest (ties: doc_id): one is dropped if a verified partner was
   already kept, else it is kept. Documents that other days kept come before all. A chain a~b~c therefore never drops c for a when c and a
   are not similar themselves: every dropped document is verified against the very document that is kept in its place. Among several
   kept partners one of another day is named first, then the most similar, then the smallest (interval, doc_id).

Across days the day that is prepared first keeps, whatever its date: nothing that a recorded day kept is dropped for a later prepared one.
A day's rows depend on its documents and on what the recorded days kept, never on the order in which those were prepared.

4. Repeats, where the recipe asks for it: survivors lose the lines or paragraphs that others hold already (jobs/repeats.py), and are dropped
   where too little is left. Steps 1 to 3 compare the whole texts of the day with what other days kept, so with texts that may have lost
   something there; fingerprints are made of what is kept.

``cluster_size`` counts the kept document and everything of this day that was dropped for it.

Scope (DeduplicateConfig.scope). With ``source`` the name of the source is mixed into every stored hash, so that equal texts of two
sources have different ones: no join, no column, and fingerprints say what they may be compared with. Two recipes with different scopes
never read each other's fingerprints, for another config is another corpus (Recipe.config_hash). With ``day`` other days are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs import repeats
from jobs.config import DeduplicateConfig
from jobs.contract import MoelineError, StageOutput, Tools
from jobs.minhash import MinHash, WordHashes, jaccard, mix, shingles, text_hash
from jobs.stars import PAIRS, decide, decide_in_spark

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame

ENGINE = "spark"
READS = {"clean_documents": "interval", "fingerprints": "other_intervals", "unique_documents": "other_intervals"}
WRITES = ("unique_documents", "duplicates", "repeated_passages", "fingerprints")  # fingerprints last: a reader of them finds the documents they name
UNMOVED = ("fingerprints",)  # what other days kept decides what this day keeps
REVISION = 1

_EXACT_BAND = -1
_HUBS = 16
_COLLECTED_PAIRS = 500_000  # similar pairs decided in this process: at most 400 bytes each, 200 MB of the 2 GiB a stage is allocated
_PASSAGE = "start int, characters int, hash bigint, kept_interval string, kept_doc_id string"
_SIGNED = "doc_id string, n_bytes bigint, exact bigint, bands array<bigint>"


def run(config: DeduplicateConfig, inputs: Mapping[str, Any], tools: Tools) -> StageOutput:
    """Rows of ``unique_documents``, ``duplicates`` and ``fingerprints`` of one day; metrics count what was found and dropped."""
    from pyspark.sql import functions as f

    interval = str(tools.interval)
    documents = inputs["clean_documents"]
    fingerprints, others = (None, None) if config.scope == "day" else (inputs.get("fingerprints"), inputs.get("unique_documents"))
    tools.progress(0, 4, "signatures")
    signed = tools.materialise(_group_exact(_sign(documents, config, tools), fingerprints, tools))
    survivors = signed.where("other_interval is null and doc_id = exact_doc_id")
    tools.progress(1, 4, "candidate pairs")
    pairs = _verify(_candidates(survivors, fingerprints, interval), documents, others, config, interval, tools)
    near, counted = _decide(pairs, config, interval, tools)
    tools.progress(2, 4, "duplicates")
    duplicates = tools.materialise(_clustered(_duplicates(signed, near, config.measure, interval), interval))
    unique = documents.join(duplicates.select("doc_id"), "doc_id", "left_anti").select(documents.columns)
    found = _Repeats.none(unique, tools) if not config.repeats else _without_repeats(unique, duplicates, documents, fingerprints, others, config, tools)
    duplicates = duplicates if found.duplicates is None else found.duplicates
    kept = signed.join(duplicates.select("doc_id"), "doc_id", "left_anti").select("doc_id", "exact", "bands")
    if found.changed is not None:
        again = _sign(found.unique.join(found.changed.select("doc_id"), "doc_id", "left_semi"), config, tools).select("doc_id", "exact", "bands")
        kept = kept.join(found.changed.select("doc_id"), "doc_id", "left_anti").union(again)
    bands = f.posexplode(f.concat(f.array("exact"), "bands")).alias("position", "hash")
    kept_bands = kept.select("doc_id", bands).select((f.col("position") + _EXACT_BAND).cast("int").alias("band"), "hash", "doc_id")
    fingerprinted = kept_bands if found.held is None else kept_bands.union(found.held.select(f.lit(repeats.PASSAGE_BAND).alias("band"), "hash", "doc_id"))
    tables = {
        "unique_documents": found.unique, "duplicates": duplicates, "repeated_passages": found.removed.withColumn("interval", f.lit(interval)),
        "fingerprints": fingerprinted.withColumn("interval", f.lit(interval)),
    }  # fmt: skip
    metrics = _metrics(signed, duplicates) | counted | found.counts
    metrics["bytes_kept"] -= found.counts.get("repeated_bytes", 0)
    tools.progress(3, 4, f"{metrics['duplicates']} of {metrics['documents']} documents dropped")
    return StageOutput(tables, metrics)


@dataclass(frozen=True)
class _Repeats:
    """What became of the survivors: ``unique`` as they are kept; ``changed``: those that lost something and stay; ``held``: (doc_id, hash) of the
    passages that are kept; ``duplicates`` with the documents of which too little was left; ``removed``: rows of repeated_passages."""

    unique: DataFrame
    removed: Any
    changed: DataFrame | None = None
    held: DataFrame | None = None
    duplicates: DataFrame | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def none(cls, unique: DataFrame, tools: Tools) -> _Repeats:
        return cls(unique, tools.spark.createDataFrame([], f"doc_id string, {_PASSAGE}"))


def _without_repeats(
    unique: DataFrame, duplicates: DataFrame, documents: DataFrame, fingerprints: DataFrame | None, others: DataFrame | None, config: DeduplicateConfig,
    tools: Tools,
) -> _Repeats:  # fmt: skip
    from pyspark.sql import functions as f

    interval = str(tools.interval)
    held = tools.materialise(repeats.held(unique, config, tools))
    gone = tools.materialise(repeats.lost(held, fingerprints, config, interval))
    edited = tools.materialise(repeats.edited(unique, gone, config, interval))
    pairs = _verify(repeats.keepers_of_dropped(edited), documents, others, config, interval, tools)
    containment = f.col("containment") if config.measure == "containment" else f.lit(None).cast("double")
    short = pairs.select(
        "doc_id", "kept_doc_id", "kept_interval", "jaccard", f.lit("repeated_passages").alias("scope"), containment.alias("containment"),
    )  # fmt: skip
    dropped, changed = edited.where("too_short").select("doc_id"), edited.where("not too_short")
    new = changed.select("doc_id", f.col("text").alias("new_text"), f.col("n_bytes").alias("new_bytes"))
    rows = unique.join(dropped, "doc_id", "left_anti").join(new, "doc_id", "left")
    rows = rows.withColumns({"text": f.coalesce("new_text", "text"), "n_bytes": f.coalesce("new_bytes", "n_bytes")}).select(unique.columns)
    removed = edited.select("doc_id", f.explode("removed").alias("r")).select("doc_id", "r.*")
    kept = held.select("doc_id", "hash").join(gone.select("doc_id", "hash"), ["doc_id", "hash"], "left_anti").join(dropped, "doc_id", "left_anti")
    totals = changed.select(f.count("*").alias("n"), f.sum("removed_bytes").alias("bytes")).first()
    counts = {"documents_shortened": totals["n"], "repeated_bytes": totals["bytes"] or 0, "repeated_passages": removed.count()}
    whole = tools.materialise(_clustered(duplicates.select(short.columns).union(short), interval))
    return _Repeats(rows, removed, changed, kept, whole, counts)


def _sign(documents: DataFrame, config: DeduplicateConfig, tools: Tools) -> DataFrame:
    """One row per document: hash of its normalised text and its LSH bands (none when it is shorter than a shingle)."""
    minhash = MinHash(config.bands, config.rows, config.seed)

    def sign(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield from _signed(batch, minhash, config)

    # A day may be one file, which is read by one task: spread it over the cores.
    partitions = int(tools.spark.conf.get("spark.sql.shuffle.partitions"))
    return documents.select("doc_id", "n_bytes", "source", "text").repartition(partitions, "doc_id").mapInArrow(sign, _SIGNED)


def _signed(batch: pa.RecordBatch, minhash: MinHash, config: DeduplicateConfig) -> Iterator[pa.RecordBatch]:
    import numpy as np
    import pyarrow as pa

    texts = batch.column("text").to_pylist()
    known = WordHashes()
    sets = [shingles(text, config.shingle_words, known) for text in texts]
    long = [index for index, found in enumerate(sets) if len(found)]
    bands = minhash.band_hashes(minhash.signatures([sets[index] for index in long]))
    exact = np.array([text_hash(text) for text in texts], np.int64)
    if config.scope == "source":
        sources = np.array([known[source] for source in batch.column("source").to_pylist()], np.uint64)
        bands, exact = _of_source(bands, sources[long, None]), _of_source(exact, sources)
    lengths = np.zeros(len(sets), np.int32)
    lengths[long] = minhash.bands
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    columns = [
        batch.column("doc_id"), batch.column("n_bytes"), pa.array(exact),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(bands.reshape(-1))),
    ]  # fmt: skip
    yield pa.RecordBatch.from_arrays(columns, names=["doc_id", "n_bytes", "exact", "bands"])


def _of_source(hashes: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """int64 hashes that are equal where both the hash and the source's hash are (but for chance, 2^-64 per pair)."""
    return mix(mix(hashes.view("uint64")) ^ sources).view("int64")


def _group_exact(signed: DataFrame, fingerprints: DataFrame | None, tools: Tools) -> DataFrame:
    """Adds the survivor of every group of equal texts (exact_doc_id), and the equal text another day kept, if any."""
    from pyspark.sql import Window
    from pyspark.sql import functions as f

    group = Window.partitionBy("exact").orderBy(f.desc("n_bytes"), "doc_id")
    grouped = signed.withColumn("exact_doc_id", f.first("doc_id").over(group))
    if fingerprints is None:
        return grouped.withColumns({"other_interval": f.lit(None).cast("string"), "other_doc_id": f.lit(None).cast("string")})
    others = fingerprints.where(f.col("band") == _EXACT_BAND).groupBy(f.col("hash").alias("exact")).agg(f.min(f.struct("interval", "doc_id")).alias("other"))
    found = grouped.join(others, "exact", "left")
    return found.withColumns({"other_interval": f.col("other.interval"), "other_doc_id": f.col("other.doc_id")}).drop("other")


def _candidates(survivors: DataFrame, fingerprints: DataFrame | None, interval: str) -> DataFrame:
    """Distinct pairs (kept_interval, kept_doc_id, doc_id) that share a band; the first would be kept for the second."""
    from pyspark.sql import functions as f

    band = f.posexplode("bands").alias("band", "hash")
    banded = survivors.select(band, f.struct((-f.col("n_bytes")).alias("rank"), "doc_id").alias("document"))
    buckets = banded.groupBy("band", "hash").agg(f.sort_array(f.collect_list("document")).alias("bucket")).where(f.size("bucket") > 1)
    here = (
        buckets.select("bucket", f.posexplode(f.slice("bucket", 1, _HUBS)).alias("place", "hub"))
        .select("hub", f.explode(f.expr("slice(bucket, place + 2, size(bucket))")).alias("document"))
        .select(f.lit(interval).alias("kept_interval"), f.col("hub.doc_id").alias("kept_doc_id"), f.col("document.doc_id").alias("doc_id"))
    )
    if fingerprints is None:
        return here.distinct()
    kept = fingerprints.where(f.col("band") > _EXACT_BAND).select("band", "hash", f.struct("interval", "doc_id").alias("hub"))
    met = banded.join(kept, ["band", "hash"]).groupBy("band", "hash", "document").agg(f.slice(f.sort_array(f.collect_set("hub")), 1, _HUBS).alias("hubs"))
    there = met.select("document", f.explode("hubs").alias("hub")).select(
        f.col("hub.interval").alias("kept_interval"), f.col("hub.doc_id").alias("kept_doc_id"), f.col("document.doc_id").alias("doc_id")
    )
    return here.union(there).distinct()


def _verify(pairs: DataFrame, documents: DataFrame, others: DataFrame | None, config: DeduplicateConfig, interval: str, tools: Tools) -> DataFrame:
    """Adds the true Jaccard similarity and containment (columns of PAIRS). Streams the texts: a task holds one hub's shingles and one partner at a time."""
    from pyspark.sql import functions as f

    key = ["kept_interval", "kept_doc_id"]
    texts = documents.select(f.lit(interval).alias("kept_interval"), f.col("doc_id").alias("kept_doc_id"), "text")
    if others is not None:
        texts = texts.union(others.select(f.col("interval"), f.col("doc_id"), "text"))
    hubs = texts.join(pairs.select(key).distinct(), key).select(*key, f.lit("").alias("doc_id"), "text")
    partners = pairs.join(documents.select("doc_id", "text"), "doc_id").select(*key, "doc_id", "text")
    shingle_words = config.shingle_words

    def measure(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from _measured(batches, shingle_words)

    partitions = int(tools.spark.conf.get("spark.sql.shuffle.partitions"))
    rows = hubs.union(partners).repartition(partitions, *key).sortWithinPartitions(*key, "doc_id")  # the hub (doc_id "") comes first
    return rows.mapInArrow(measure, PAIRS)


def _measured(batches: Iterator[pa.RecordBatch], shingle_words: int) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.compute as pc

    hub: tuple[str, str] | None = None
    for batch in batches:
        known = WordHashes()
        similarities: list[tuple[float, float] | None] = []
        keys = zip(*(batch.column(name).to_pylist() for name in ("kept_interval", "kept_doc_id", "doc_id", "text")), strict=True)
        for kept_interval, kept_doc_id, doc_id, text in keys:
            if doc_id == "":
                hub, hub_shingles = (kept_interval, kept_doc_id), shingles(text, shingle_words, known)
            elif hub != (kept_interval, kept_doc_id):
                raise MoelineError(f"fingerprints name {kept_doc_id} of {kept_interval}, which unique_documents does not hold. Run that day again.")
            similarities.append(None if doc_id == "" else _similarities(hub_shingles, shingles(text, shingle_words, known)))
        found = pa.array(similarities, pa.list_(pa.float64(), 2))
        columns = [*batch.select(["kept_interval", "kept_doc_id", "doc_id"]).columns, *(pc.list_element(found, place) for place in (0, 1))]
        yield pa.RecordBatch.from_arrays(columns, names=["kept_interval", "kept_doc_id", "doc_id", "jaccard", "containment"]).filter(found.is_valid())


def _similarities(left: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """(true Jaccard similarity, true containment of the smaller set in the larger) of two shingle sets, of which none is empty."""
    similarity = jaccard(left, right)
    both = round(similarity * (len(left) + len(right)) / (1 + similarity))  # exact: the number of shared shingles is whole
    return similarity, both / min(len(left), len(right))


def _decide(pairs: DataFrame, config: DeduplicateConfig, interval: str, tools: Tools) -> tuple[DataFrame, dict[str, int]]:
    """Who is dropped for whom (see the module's rule 3): in Spark, where the number of pairs is bounded by nothing but its disks.

    A round of joins in Spark costs seconds whatever its size, and a chain of documents takes many rounds, so up to _COLLECTED_PAIRS pairs
    (a bound of this process's memory) are decided here in a second or two. Both ways give the same rows (jobs/stars.py).
    """
    from pyspark.sql import functions as f

    pairs = tools.materialise(pairs)  # so that nothing is verified twice
    enough = f.col(config.measure) >= config.min_similarity
    candidates, verified = pairs.select(f.count("*"), f.count_if(enough)).first()
    similar, counted = pairs.where(enough), {"candidate_pairs": candidates, "verified_pairs": verified}
    if verified > _COLLECTED_PAIRS:
        return decide_in_spark(similar, interval, tools, config.measure), counted
    return tools.spark.createDataFrame(decide(similar.toArrow(), interval, config.measure), PAIRS), counted


def _duplicates(signed: DataFrame, near: DataFrame, measure: str, interval: str) -> DataFrame:
    """Rows of ``duplicates``. A copy of a text that was itself dropped names the document kept in the end."""
    from pyspark.sql import functions as f

    near = near.withColumnRenamed("doc_id", "exact_doc_id")
    joined = signed.select("doc_id", "exact_doc_id", "other_interval", "other_doc_id").join(near, "exact_doc_id", "left")
    other_day = f.col("other_doc_id").isNotNull()
    close = f.col("jaccard").isNotNull()
    scope = (
        f.when(other_day, "exact_other_day")
        .when(close & (f.col("kept_interval") != interval), "near_other_day")
        .when(close, "near")
        .when(f.col("doc_id") != f.col("exact_doc_id"), "exact")
    )

    def equal_or(similarity: str) -> Column:
        return f.when(other_day, 1.0).otherwise(f.coalesce(similarity, f.lit(1.0)))

    return joined.select(
        "doc_id",
        f.coalesce("other_doc_id", "kept_doc_id", "exact_doc_id").alias("kept_doc_id"),
        f.coalesce("other_interval", "kept_interval", f.lit(interval)).alias("kept_interval"),
        equal_or("jaccard").alias("jaccard"),
        scope.alias("scope"),
        (equal_or("containment") if measure == "containment" else f.lit(None).cast("double")).alias("containment"),
    ).where("scope is not null")


def _clustered(found: DataFrame, interval: str) -> DataFrame:
    from pyspark.sql import Window
    from pyspark.sql import functions as f

    cluster = Window.partitionBy("kept_interval", "kept_doc_id")
    return found.withColumns({"cluster_size": f.count("*").over(cluster) + 1, "interval": f.lit(interval)})


def _metrics(signed: DataFrame, duplicates: DataFrame) -> dict[str, Any]:
    """Counts of documents and bytes, in and dropped by scope; one query."""
    from pyspark.sql import functions as f

    scoped = signed.join(duplicates.select("doc_id", "scope"), "doc_id", "left")
    rows = scoped.groupBy("scope").agg(f.count("*").alias("documents"), f.sum("n_bytes").alias("bytes")).collect()
    scopes = {row["scope"]: row["documents"] for row in rows}
    kept = scopes.pop(None, 0)
    return {
        "documents": kept + sum(scopes.values()), "kept": kept, "duplicates": sum(scopes.values()),
        "bytes": sum(row["bytes"] for row in rows), "bytes_kept": sum(row["bytes"] for row in rows if row["scope"] is None),
        "duplicates_by_scope": dict(sorted(scopes.items())),
    }  # fmt: skip
