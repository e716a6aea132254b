"""Decontaminate: hold 1 % of the documents out, make benchmark items of them, and drop or cut training documents that contain an item's words.

Change here: how a day is searched, what is recorded. Not here: what counts as contaminated (jobs/decontamination.py), how items are made
(models/gauntlet), who is held out (jobs/contract.py), lengths, thresholds and the action (DecontaminateConfig in jobs/config.py).

Both rules are looked up for every item and written to ``contaminated_items``; the one that the recipe names for a benchmark decides which
documents are dropped or cut. The items in use are the own-data items of this and of all other recorded days, the symbolic tasks, and
Foundry's tasks when GAUNTLET_DATA is given. A day that was prepared before another day's items existed is checked against those when it is
run again: `moeline stale` lists such days, and the evaluation marks what is left of such overlaps (jobs/stages/evaluate.py).

The items and the held-out 1 % are held by this process; the documents of the day are not.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from expectations.tables import TABLES
from jobs import item_texts
from jobs.config import DecontaminateConfig
from jobs.contract import StageOutput, Tools, is_held_out
from jobs.decontamination import ItemNgrams, Punctuation, check_names, is_acted_on, is_among, item_rows, kept_pieces, matched_spans, ngram_tokens
from jobs.minhash import WordHashes, ngram_hashes
from jobs.services.delta import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

ENGINE = "spark"
READS = {"unique_documents": "interval", "benchmark_items": "other_intervals"}
WRITES = ("training_documents", "contamination", "contaminated_items", "benchmark_items")
REVISION = 2  # 2: contaminated_items; pieces of documents that were cut

_HITS = "doc_id string, held boolean, characters int, rule string, hash bigint, position int, ngram string"
_CUT = "doc_id string, pieces array<string>, piece_starts array<int>, removed_characters bigint"
_SHIPPED_NGRAMS = 2_000_000  # 16 MB of hashes travel with the function; more are joined as a table


@dataclass(frozen=True)
class _Found:
    """What a day's documents hold. ``acting``: (rule, benchmark, item_id, doc_id, characters, ngram, action asked) of every document that contaminates an item
    alone and pays for it; ``documents``: how many contaminate an item alone, paying or not."""

    hits: DataFrame
    ngrams: DataFrame  # (rule, hash, benchmark, item_id, n) of the items that may be contaminated
    rare: np.ndarray  # hashes of n-grams of rule ngram that are no boilerplate
    boilerplate: int
    matched: set[tuple[str, str]]  # items that rule ngram finds
    acting: DataFrame
    documents: dict[tuple[str, str, str], int]


def run(config: DecontaminateConfig, inputs: Mapping[str, Any], tools: Tools) -> StageOutput:
    """Rows of the four tables of one day; metrics count documents and items."""
    documents = inputs["unique_documents"]
    tools.progress(0, 4, "held-out documents")
    held_out = _held_out(documents)
    own = item_texts.own_items(config.suite, held_out)
    tools.progress(1, 4, f"{len(own)} own-data items of {held_out.num_rows} held-out documents")
    texts = [*item_texts.own_texts(own), *item_texts.other_days(inputs.get("benchmark_items"), config.suite), *item_texts.fixed_texts(config.suite, tools)]
    check_names(config, {*config.suite.own_data_tasks, *config.suite.symbolic_tasks, *(benchmark for benchmark, _, _ in texts)})
    items = {"ngram": ItemNgrams(texts, config.ngram_words), "share": ItemNgrams(texts, config.share_words, first_only=True)}
    found = _search(documents.select("doc_id", "text"), items, config, tools)
    tools.progress(2, 4, "contaminated documents")
    cut = _cut_documents(documents, found, config, tools) if config.may_cut else None
    contamination = tools.materialise(_contamination(found, cut, tools))
    rows = _item_rows(found, contamination, cut, items, config, tools)
    metrics = _metrics(documents, contamination) | {
        "held_out_documents": held_out.num_rows, "own_items": dict(Counter(row["benchmark"] for row in own)), "own_items_digest": _digest(own),
        "item_texts": len(texts), "boilerplate_ngrams": found.boilerplate, "matched_ngrams": len(found.rare),
        "contaminated_items": dict(Counter(row["rule"] for row in rows if row["contaminated"])),
        "contaminated_items_still_training": dict(Counter(row["rule"] for row in rows if row["still_trains"])),
    }  # fmt: skip
    tools.progress(3, 4, f"{metrics['contaminated_documents']} of {metrics['documents']} documents dropped or cut")
    tables = {"training_documents": _training(documents, contamination, cut, held_out, tools), "contamination": contamination}
    return StageOutput(tables | {"contaminated_items": _arrow("contaminated_items", rows), "benchmark_items": _arrow("benchmark_items", own)}, metrics)


def _held_out(documents: DataFrame) -> pa.Table:
    """The held-out documents (doc_id, source, text), sorted by doc_id."""

    def select(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            yield batch.filter(pa.array([is_held_out(doc_id) for doc_id in batch.column("doc_id").to_pylist()], pa.bool_()))

    return documents.select("doc_id", "source", "text").mapInArrow(select, "doc_id string, source string, text string").toArrow().sort_by("doc_id")


def _arrow(table: str, rows: list[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    schema = arrow_schema(TABLES[table])
    return pa.Table.from_pylist(rows, pa.schema([column for column in schema if column.name != "interval"]))


def _digest(own: Iterable[Mapping[str, Any]]) -> str:
    """16 hex digits of the day's own items: what `moeline stale` compares."""
    return hashlib.sha256("".join(f"{row['benchmark']}\0{row['item_id']}\0{row['item']}\n" for row in own).encode()).hexdigest()[:16]


def _search(texts: DataFrame, items: Mapping[str, ItemNgrams], config: DecontaminateConfig, tools: Tools) -> _Found:
    """Which n-grams of items the documents hold, which of them count, and which documents contaminate which items alone."""
    from pyspark.sql import functions as f

    hits = tools.materialise(_hits(texts, items, tools))
    counts = (f.count("*").alias("documents"), f.count(f.when(~f.col("held"), 1)).alias("training"))
    counted = hits.where("rule = 'ngram'").groupBy("ngram", "hash").agg(*counts).toArrow().to_pylist()
    rare = {row["ngram"]: row for row in counted if row["documents"] <= config.max_documents}
    matches = items["ngram"].items_of(ngram for ngram, row in rare.items() if row["training"])
    # By share no document can hold enough of an item of which all documents together hold too little: the others are not joined.
    named = [("ngram", rare[ngram]["hash"], benchmark, item_id, 0) for ngram, benchmark, item_id in matches]
    named += [("share", *row) for row in items["share"].reached(_distinct(hits.where("not held"), "share"), config.share)]
    ngrams = _frame(named, "rule string, hash bigint, benchmark string, item_id string, n bigint", tools)
    alone = tools.materialise(_alone(hits.where("not held"), ngrams, config.share))
    documents = {(r["rule"], r["benchmark"], r["item_id"]): r["count"] for r in alone.groupBy("rule", "benchmark", "item_id").count().collect()}
    paid = [(*key, config.action_of(key[1])) for key, n in sorted(documents.items()) if config.rule_of(key[1]) == key[0] and is_acted_on(config, key[0], n)]
    acting = alone.join(f.broadcast(_frame(paid, "rule string, benchmark string, item_id string, action string", tools)), ["rule", "benchmark", "item_id"])
    hashes = np.array([row["hash"] for row in rare.values()], np.int64).view(np.uint64)
    return _Found(hits, ngrams, hashes, len(counted) - len(rare), {match[1:] for match in matches}, acting, documents)


def _frame(rows: list[tuple[Any, ...]], schema: str, tools: Tools) -> DataFrame:
    import pyarrow as pa

    types = {"string": pa.string(), "bigint": pa.int64()}
    fields = [pa.field(name, types[kind]) for name, kind in (column.split() for column in schema.split(", "))]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(fields)
    return tools.spark.createDataFrame(pa.table([pa.array(c, x.type) for c, x in zip(columns, fields, strict=True)], schema=pa.schema(fields)), schema)


def _distinct(hits: DataFrame, rule: str) -> np.ndarray:
    """Different hashes among the hits of a rule, uint64."""
    found = hits.where(hits["rule"] == rule).select("hash").distinct().toArrow()["hash"].to_numpy()
    return found.astype(np.int64).view(np.uint64)


def _alone(hits: DataFrame, ngrams: DataFrame, share: float) -> DataFrame:
    """(rule, benchmark, item_id, doc_id, characters, ngram): every document that contaminates an item alone, with its first matched n-gram."""
    from pyspark.sql import functions as f

    held = hits.join(ngrams, ["rule", "hash"]).groupBy("rule", "benchmark", "item_id", "doc_id", "n")
    measured = held.agg(f.count("*").alias("held"), f.first("characters").alias("characters"), f.min_by("ngram", "position").alias("ngram"))
    return measured.where((f.col("rule") == "ngram") | (f.col("held") / f.col("n") >= share)).drop("n", "held")


def _hits(texts: DataFrame, items: Mapping[str, ItemNgrams], tools: Tools) -> DataFrame:
    """Every n-gram of an item that a text holds, once per text and rule at its first position (rows of _HITS). ``texts``: doc_id, text."""
    from pyspark.sql import functions as f

    wanted = {rule: (known.n, known.hashes()) for rule, known in items.items()}
    lengths = {rule: n for rule, (n, _) in wanted.items()}
    partitions = int(tools.spark.conf.get("spark.sql.shuffle.partitions"))
    spread = texts.repartition(partitions, "doc_id")
    if sum(len(hashes) for _, hashes in wanted.values()) <= _SHIPPED_NGRAMS:
        shipped = {rule: hashes for rule, (_, hashes) in wanted.items()}

        def find(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                yield from _found(batch, lengths, shipped)

        return spread.mapInArrow(find, _HITS)
    import pyarrow as pa

    tables = [pa.table({"rule": pa.array([rule] * len(hashes)), "hash": hashes.view(np.int64)}) for rule, (_, hashes) in wanted.items()]
    known = tools.spark.createDataFrame(pa.concat_tables(tables), "rule string, hash bigint")

    def place(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield from _found(batch, lengths, None)

    # Only hashes and positions are joined; the words of the hits are cut out of the texts afterwards.
    places = spread.mapInArrow(place, "doc_id string, rule string, hash bigint, position int").join(known, ["rule", "hash"], "left_semi")
    gathered = places.groupBy("doc_id").agg(f.collect_list("rule").alias("rules"), f.collect_list("position").alias("positions"))

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield from _read_back(batch, lengths)

    return spread.join(gathered, "doc_id").mapInArrow(read, _HITS)


def _found(batch: pa.RecordBatch, lengths: Mapping[str, int], wanted: Mapping[str, np.ndarray] | None) -> Iterator[pa.RecordBatch]:
    """Hits of one batch, with their words; without ``wanted`` every n-gram, without words."""
    import pyarrow as pa

    known, table = WordHashes(), Punctuation()
    for doc_id, text in zip(batch.column("doc_id").to_pylist(), batch.column("text").to_pylist(), strict=True):
        words = ngram_tokens(text, table)
        for rule, n in lengths.items():
            found, first = np.unique(ngram_hashes(words, n, known), return_index=True)
            if wanted is not None:
                hit = is_among(found, wanted[rule])
                found, first = found[hit], first[hit]
            if len(found) and wanted is not None:
                yield _hit_rows(doc_id, text, words, n, [rule] * len(found), first, found)
            elif len(found):
                columns = {"doc_id": [doc_id] * len(found), "rule": [rule] * len(found), "hash": found.view(np.int64), "position": first.astype(np.int32)}
                yield pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns.items()})


def _hit_rows(doc_id: str, text: str, words: list[str], n: int, rules: list[str], positions: np.ndarray, hashes: np.ndarray) -> pa.RecordBatch:
    import pyarrow as pa

    columns = {
        "doc_id": pa.array([doc_id] * len(hashes), pa.string()), "held": pa.array([is_held_out(doc_id)] * len(hashes), pa.bool_()),
        "characters": pa.array([len(text)] * len(hashes), pa.int32()), "rule": pa.array(rules, pa.string()), "hash": pa.array(hashes.view(np.int64)),
        "position": pa.array(positions.astype(np.int32)), "ngram": pa.array([" ".join(words[i : i + n]) for i in positions.tolist()], pa.string()),
    }  # fmt: skip
    return pa.RecordBatch.from_pydict(columns)


def _read_back(batch: pa.RecordBatch, lengths: Mapping[str, int]) -> Iterator[pa.RecordBatch]:
    """Hits of documents whose positions are known, with their words."""
    known, table = WordHashes(), Punctuation()
    for doc_id, text, rules, positions in zip(*(batch.column(c).to_pylist() for c in ("doc_id", "text", "rules", "positions")), strict=True):
        words = ngram_tokens(text, table)
        for rule, n in lengths.items():
            at = np.array(sorted(p for r, p in zip(rules, positions, strict=True) if r == rule), np.int64)
            if len(at):
                yield _hit_rows(doc_id, text, words, n, [rule] * len(at), at, ngram_hashes(words, n, known)[at])


def _cut_documents(documents: DataFrame, found: _Found, config: DecontaminateConfig, tools: Tools) -> DataFrame:
    """(doc_id, pieces, piece_starts, removed_characters) of every document that has to pay; no pieces: nothing is left of it."""
    from pyspark.sql import functions as f

    dropped = found.acting.where("action = 'drop_document'").select("doc_id", f.col("characters").cast("bigint").alias("removed_characters")).distinct()
    marked = found.hits.join(found.ngrams, ["rule", "hash"]).join(found.acting, ["rule", "benchmark", "item_id", "doc_id"], "left_semi")
    wanted = marked.groupBy("doc_id").agg(*(f.collect_set(f.when(f.col("rule") == rule, f.col("hash"))).alias(rule) for rule in ("ngram", "share")))
    lengths = {"ngram": config.ngram_words, "share": config.share_words}

    def cut(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield _cut(batch, lengths, config)

    # One benchmark that asks for the whole document is enough, and then nothing of it is cut for the others.
    texts = documents.select("doc_id", "text").join(wanted, "doc_id").join(dropped, "doc_id", "left_anti")
    nothing = (f.array().cast("array<string>").alias("pieces"), f.array().cast("array<int>").alias("piece_starts"))
    return tools.materialise(texts.mapInArrow(cut, _CUT).unionByName(dropped.select("doc_id", *nothing, "removed_characters")))


def _cut(batch: pa.RecordBatch, lengths: Mapping[str, int], config: DecontaminateConfig) -> pa.RecordBatch:
    import pyarrow as pa

    known, table, rows = WordHashes(), Punctuation(), []
    for row in batch.to_pylist():
        text = row["text"]
        wanted = [(n, np.array(row[rule], np.int64).view(np.uint64)) for rule, n in lengths.items()]
        places = kept_pieces(
            len(text), matched_spans(text, wanted, known, table), around=config.cut_characters, least=config.min_piece_characters, most=config.max_pieces
        )
        pieces = [text[start:stop] for start, stop in places]
        starts = [sum(len(piece) + 1 for piece in pieces[:i]) for i in range(len(pieces))]
        rows.append({"doc_id": row["doc_id"], "pieces": pieces, "piece_starts": starts, "removed_characters": len(text) - sum(map(len, pieces))})
    kinds = (pa.string(), pa.list_(pa.string()), pa.list_(pa.int32()), pa.int64())
    return pa.RecordBatch.from_pylist(rows, pa.schema(list(zip(("doc_id", "pieces", "piece_starts", "removed_characters"), kinds, strict=True))))


def _contamination(found: _Found, cut: DataFrame | None, tools: Tools) -> DataFrame:
    """Rows of ``contamination``."""
    from pyspark.sql import functions as f

    removed = f.col("characters").cast("bigint")
    if cut is None:
        rows = found.acting.withColumn("removed_characters", removed)
    else:
        action = f.when(f.size("pieces") > 0, "cut_passage").otherwise("drop_document")
        rows = found.acting.join(cut, "doc_id").withColumn("action", action)
    return rows.withColumn("interval", f.lit(tools.interval)).drop("characters", "pieces", "piece_starts")


def _training(documents: DataFrame, contamination: DataFrame, cut: DataFrame | None, held_out: pa.Table, tools: Tools) -> DataFrame:
    """Rows of ``training_documents``: documents nobody complained of, and the pieces of those that were cut. A cut document keeps its id."""
    from pyspark.sql import functions as f

    split = tools.spark.createDataFrame(held_out.select(["doc_id"]), "doc_id string").withColumn("split", f.lit("held_out"))
    whole = documents.join(contamination.select("doc_id"), "doc_id", "left_anti").join(split, "doc_id", "left")
    names = [c for c in documents.columns if c != "scores"]
    rows = whole.withColumns({"split": f.coalesce("split", f.lit("train")), "piece_starts": f.lit(None).cast("array<int>")})
    rows = rows.select(*names, "split", "piece_starts")
    if cut is None:
        return rows
    pieces = cut.where(f.size("pieces") > 0).withColumn("text", f.array_join("pieces", "\n")).withColumn("n_bytes", f.octet_length("text").cast("bigint"))
    left = documents.drop("text", "n_bytes").join(pieces, "doc_id").withColumn("split", f.lit("train"))
    return rows.unionByName(left.select(*names, "split", "piece_starts"))


def _item_rows(
    found: _Found, contamination: DataFrame, cut: DataFrame | None, items: Mapping[str, ItemNgrams], config: DecontaminateConfig, tools: Tools
) -> list[dict[str, Any]]:
    """Rows of ``contaminated_items`` without the interval."""
    from pyspark.sql import functions as f

    training = found.hits.where("not held")
    after = training.join(contamination.select("doc_id"), "doc_id", "left_anti").select("rule", "hash")
    if cut is not None:  # what the pieces hold is looked up again: a cut that left a match would show here
        pieces = cut.select("doc_id", f.posexplode("pieces").alias("place", "text"))
        after = after.unionByName(_hits(pieces.select(f.concat_ws("#", "doc_id", "place").alias("doc_id"), "text"), items, tools).select("rule", "hash"))
    after = tools.materialise(after.distinct())
    rows: list[dict[str, Any]] = []
    for rule, known in items.items():
        left = _distinct(after, rule)
        documents = {key[1:]: n for key, n in found.documents.items() if key[0] == rule}
        rows += item_rows(
            config, rule, known, held=_distinct(training, rule), left=np.intersect1d(left, found.rare) if rule == "ngram" else left,
            documents=documents, matched=found.matched,
        )  # fmt: skip
    return rows


def _metrics(documents: DataFrame, contamination: DataFrame) -> dict[str, Any]:
    from pyspark.sql import functions as f

    marked = documents.select("doc_id", "n_bytes").join(contamination.select("doc_id").distinct().withColumn("dirty", f.lit(1)), "doc_id", "left")
    row = marked.agg(
        f.count("*").alias("documents"), f.sum("dirty").alias("dirty"), f.sum(f.when(f.col("dirty") == 1, f.col("n_bytes"))).alias("bytes")
    ).collect()[0]
    by_benchmark = {r["benchmark"]: r["count"] for r in contamination.groupBy("benchmark").count().collect()}
    by_document = contamination.select("doc_id", "action", "removed_characters").distinct().groupBy("action")
    lost = {r["action"]: r for r in by_document.agg(f.count("*").alias("documents"), f.sum("removed_characters").alias("characters")).collect()}
    return {
        "documents": row["documents"], "contaminated_documents": row["dirty"] or 0, "contaminated_bytes": row["bytes"] or 0,
        "contamination_by_benchmark": dict(sorted(by_benchmark.items())), "removed_characters": sum(r["characters"] for r in lost.values()),
        "cut_documents": lost["cut_passage"]["documents"] if "cut_passage" in lost else 0,
    }  # fmt: skip
