"""Decontaminate: hold 1 % of the documents out, make benchmark items of them, and drop training documents that contain an item's words.

Change here: what counts as contaminated. Not here: how items are made (models/gauntlet), who is held out (jobs/contract.py), the length
of an n-gram (DecontaminateConfig in jobs/config.py).

The rule is GPT-3's (Brown et al. 2020, appendix C) without its cutting of documents: lower case, punctuation removed, words are what is
between white space; a training document that shares one n-gram of ``ngram_words`` words with an item in use does not train. N-grams
found in more than ``max_documents`` documents of the day are boilerplate and do not count. Texts of an item that are shorter than an n-gram
cannot be matched. The items in use are the own-data items of this and of all other recorded days, the symbolic tasks, and Foundry's tasks
when GAUNTLET_DATA is given. A day that was prepared before another day's items existed is checked against those when it is run again; the
evaluation marks what is left of such overlaps (jobs/stages/evaluate.py).

The items and the held-out 1 % are held by this process; the documents of the day are not.
"""

from __future__ import annotations

import json
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.config import DecontaminateConfig, SuiteConfig
from jobs.contract import MoelineError, StageOutput, Tools, is_held_out
from jobs.minhash import WordHashes, ngram_hashes, ngram_hashes_of_many
from models.gauntlet import own_data, symbolic, tasks

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

ENGINE = "spark"
READS = {"unique_documents": "interval", "benchmark_items": "other_intervals"}
WRITES = ("training_documents", "contamination", "benchmark_items")
REVISION = 1

_HITS = "doc_id string, hash bigint, position int, ngram string"
_ITEM_TEXTS = 2000  # hashed at once
_SHIPPED_NGRAMS = 2_000_000  # 16 MB of hashes travel with the function; more are joined as a table


class _Punctuation(dict[int, str | None]):
    """Table for str.translate that deletes punctuation (Unicode categories P*) and the other ASCII marks, worked out as they are met."""

    def __missing__(self, code: int) -> str | None:
        mark = chr(code) in string.punctuation or unicodedata.category(chr(code)).startswith("P")
        self[code] = made = None if mark else chr(code)
        return made


def ngram_tokens(text: str, table: _Punctuation | None = None) -> list[str]:
    """Words as decontamination compares them: lower case, punctuation removed, split at white space."""
    return text.lower().translate(_Punctuation() if table is None else table).split()


def _batched(texts: Iterable[tuple[str, str, str]], size: int) -> Iterator[list[tuple[str, str, str]]]:
    waiting = iter(texts)
    while part := list(islice(waiting, size)):
        yield part


class ItemNgrams:
    """The n-grams of every text of every benchmark item: 12 bytes each, their words only on demand."""

    def __init__(self, texts: Iterable[tuple[str, str, str]], n: int) -> None:
        """``texts``: (benchmark, item_id, text), several per item allowed."""
        table = _Punctuation()
        self.n = n
        self._texts: list[tuple[str, str, str]] = []
        hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for part in _batched(texts, _ITEM_TEXTS):
            tokens = [ngram_tokens(text, table) for _, _, text in part]
            long = [index for index, found in enumerate(tokens) if len(found) >= n]
            found, owner = ngram_hashes_of_many([tokens[index] for index in long], n, WordHashes())
            hashes.append(found)
            owners.append(owner + len(self._texts))
            self._texts += [part[index] for index in long]
        self._hashes, self._owners = np.concatenate(hashes), np.concatenate(owners).astype(np.int32)

    def hashes(self) -> np.ndarray:
        """Sorted unique uint64 hashes of all n-grams."""
        return np.unique(self._hashes)

    def items_of(self, ngrams: Iterable[str]) -> list[tuple[str, str, str]]:
        """Sorted (n-gram, benchmark, item_id) for every item that really holds one of the ``ngrams`` (equal words, not only equal hashes)."""
        wanted = set(ngrams)
        known = WordHashes()
        hits = np.unique(np.array([int(ngram_hashes(ngram.split(" "), self.n, known)[0]) for ngram in wanted], np.uint64))
        found = set()
        for owner in np.unique(self._owners[np.isin(self._hashes, hits)]).tolist():
            benchmark, item_id, text = self._texts[owner]
            words = ngram_tokens(text)
            here = {" ".join(words[i : i + self.n]) for i in range(len(words) - self.n + 1)}
            found |= {(ngram, benchmark, item_id) for ngram in here & wanted}
        return sorted(found)


def run(config: DecontaminateConfig, inputs: Mapping[str, Any], tools: Tools) -> StageOutput:
    """Rows of ``training_documents``, ``contamination`` and ``benchmark_items`` of one day; metrics count documents and items."""
    from pyspark.sql import functions as f

    documents = inputs["unique_documents"]
    tools.progress(0, 4, "held-out documents")
    held_out = _held_out(documents)
    own = _own_items(config.suite, held_out)
    tools.progress(1, 4, f"{len(own)} own-data items of {held_out.num_rows} held-out documents")
    texts = [*_own_texts(own), *_other_days(inputs.get("benchmark_items"), config.suite), *_fixed_texts(config.suite, tools)]
    items = ItemNgrams(texts, config.ngram_words)
    hits = tools.materialise(_find(documents, items.hashes(), config.ngram_words, tools))
    tools.progress(2, 4, "contaminated documents")
    rare, boilerplate = _rare(hits, config.max_documents)
    held_ids = tools.spark.createDataFrame(held_out.select(["doc_id"]), "doc_id string")
    contamination = tools.materialise(_contamination(hits.join(held_ids, "doc_id", "left_anti"), items.items_of(rare), tools))
    split = held_ids.withColumn("split", f.lit("held_out"))
    kept = documents.join(contamination.select("doc_id"), "doc_id", "left_anti").join(split, "doc_id", "left")
    training = kept.withColumn("split", f.coalesce("split", f.lit("train"))).drop("scores").select(*[c for c in documents.columns if c != "scores"], "split")
    metrics = _metrics(documents, contamination) | {
        "held_out_documents": held_out.num_rows, "own_items": dict(Counter(row["benchmark"] for row in own)), "item_texts": len(texts),
        "boilerplate_ngrams": boilerplate, "matched_ngrams": len(rare),
    }  # fmt: skip
    tools.progress(3, 4, f"{metrics['contaminated_documents']} of {metrics['documents']} documents dropped")
    return StageOutput({"training_documents": training, "contamination": contamination, "benchmark_items": _items_table(own)}, metrics)


def _held_out(documents: DataFrame) -> pa.Table:
    """The held-out documents (doc_id, source, text), sorted by doc_id."""

    def select(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            yield batch.filter(pa.array([is_held_out(doc_id) for doc_id in batch.column("doc_id").to_pylist()], pa.bool_()))

    return documents.select("doc_id", "source", "text").mapInArrow(select, "doc_id string, source string, text string").toArrow().sort_by("doc_id")


def _own_items(suite: SuiteConfig, held_out: pa.Table) -> list[dict[str, Any]]:
    """Rows of ``benchmark_items`` without the interval."""
    documents = list(zip(*(held_out[c].to_pylist() for c in ("doc_id", "source", "text")), strict=True))
    rows = []
    for task in suite.own_data_tasks:
        try:
            made = own_data.make_items(documents, task=task, seed=suite.seed, max_items=None)
        except ValueError as error:
            raise MoelineError(f"Suite {suite.name}: {error}") from None
        for item in made:
            row = json.dumps(item.row, ensure_ascii=False, sort_keys=True)
            rows.append({"benchmark": task, "item_id": item.item_id, "doc_id": item.doc_id, "source": item.source, "item": row})
    return rows


def _items_table(rows: list[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in ("benchmark", "item_id", "doc_id", "source", "item")]))


def _own_texts(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    by_task: dict[str, list[tasks.Item]] = defaultdict(list)
    for row in rows:
        by_task[row["benchmark"]].append(tasks.Item(row["item_id"], json.loads(row["item"])))
    for label, items in by_task.items():
        yield from _texts(tasks.Benchmark(tasks.Task(label=label, kind=tasks.MULTIPLE_CHOICE, category="own_data"), tuple(items)))


def _texts(benchmark: tasks.Benchmark) -> Iterator[tuple[str, str, str]]:
    for item_id, text in tasks.item_texts(benchmark):
        yield benchmark.task.label, item_id, text


def _other_days(benchmark_items: DataFrame | None, suite: SuiteConfig) -> Iterator[tuple[str, str, str]]:
    """Texts of the own-data items of all other days."""
    if benchmark_items is None:
        return
    in_use = benchmark_items.where(benchmark_items["benchmark"].isin(list(suite.own_data_tasks)))
    yield from _own_texts(in_use.select("benchmark", "item_id", "item").toArrow().to_pylist())


def _fixed_texts(suite: SuiteConfig, tools: Tools) -> Iterator[tuple[str, str, str]]:
    """Texts of the symbolic tasks and, when given, of Foundry's."""
    try:
        for label in suite.symbolic_tasks:
            made = symbolic.make_items(label, n=suite.items_per_task, seed=suite.seed)
            yield from _texts(tasks.Benchmark(tasks.Task(label=label, kind=tasks.MULTIPLE_CHOICE, category="symbolic"), tuple(made)))
        folder = getattr(tools, "gauntlet_data", None)
        if suite.gauntlet_digest and not folder:
            raise MoelineError(f"Suite {suite.name} holds Foundry's tasks (digest {suite.gauntlet_digest[:16]}), but GAUNTLET_DATA is not set. Set it.")
        for benchmark in tasks.gauntlet_data(folder) if folder else ():
            yield from _texts(benchmark)
    except ValueError as error:
        raise MoelineError(f"Suite {suite.name}: {error}") from None


def _find(documents: DataFrame, hashes: np.ndarray, n: int, tools: Tools) -> DataFrame:
    """Every n-gram of ``hashes`` that a document holds, once per document at its first position (rows of _HITS)."""
    from pyspark.sql import functions as f

    partitions = int(tools.spark.conf.get("spark.sql.shuffle.partitions"))
    texts = documents.select("doc_id", "text").repartition(partitions, "doc_id")
    shipped = hashes if len(hashes) <= _SHIPPED_NGRAMS else None

    def find(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield from _found(batch, shipped, n)

    if shipped is not None:
        return texts.mapInArrow(find, _HITS)
    import pyarrow as pa

    wanted = tools.spark.createDataFrame(pa.table({"hash": hashes.view(np.int64)}), "hash bigint")
    # Only hashes and positions are joined; the words of the hits are cut out of the texts afterwards.
    places = texts.mapInArrow(find, "doc_id string, hash bigint, position int").join(wanted, "hash", "left_semi")
    gathered = places.groupBy("doc_id").agg(f.sort_array(f.collect_list("position")).alias("positions"))

    def cut(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield from _cut(batch, n)

    return texts.join(gathered, "doc_id").mapInArrow(cut, _HITS)


def _found(batch: pa.RecordBatch, wanted: np.ndarray | None, n: int) -> Iterator[pa.RecordBatch]:
    """Hits of one batch, with their words; without ``wanted`` every n-gram, without words."""
    import pyarrow as pa

    known, table = WordHashes(), _Punctuation()
    for doc_id, text in zip(batch.column("doc_id").to_pylist(), batch.column("text").to_pylist(), strict=True):
        words = ngram_tokens(text, table)
        found, first = np.unique(ngram_hashes(words, n, known), return_index=True)
        if wanted is not None:
            hit = np.isin(found, wanted, assume_unique=True)
            found, first = found[hit], first[hit]
        if not len(found):
            continue
        columns = {"doc_id": pa.array([doc_id] * len(found)), "hash": pa.array(found.view(np.int64)), "position": pa.array(first.astype(np.int32))}
        if wanted is not None:
            columns["ngram"] = pa.array([" ".join(words[i : i + n]) for i in first.tolist()], pa.string())
        yield pa.RecordBatch.from_pydict(columns)


def _cut(batch: pa.RecordBatch, n: int) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    known, table = WordHashes(), _Punctuation()
    for doc_id, text, positions in zip(*(batch.column(c).to_pylist() for c in ("doc_id", "text", "positions")), strict=True):
        words = ngram_tokens(text, table)
        hashes = ngram_hashes(words, n, known)[positions]
        columns = {
            "doc_id": pa.array([doc_id] * len(positions)), "hash": pa.array(hashes.view(np.int64)), "position": pa.array(positions, pa.int32()),
            "ngram": pa.array([" ".join(words[i : i + n]) for i in positions], pa.string()),
        }  # fmt: skip
        yield pa.RecordBatch.from_pydict(columns)


def _rare(hits: DataFrame, max_documents: int) -> tuple[list[str], int]:
    """(n-grams found in at most ``max_documents`` documents, number of the others). There are at most as many as items have n-grams."""
    from pyspark.sql import functions as f

    counted = hits.groupBy("ngram").agg(f.count("*").alias("documents")).toArrow().to_pylist()
    rare = [row["ngram"] for row in counted if row["documents"] <= max_documents]
    return rare, len(counted) - len(rare)


def _contamination(hits: DataFrame, matches: list[tuple[str, str, str]], tools: Tools) -> DataFrame:
    """Rows of ``contamination``: the first matched n-gram of every pair of document and item."""
    import pyarrow as pa
    from pyspark.sql import functions as f

    columns = list(zip(*matches, strict=True)) if matches else [[], [], []]
    table = pa.table([pa.array(list(column), pa.string()) for column in columns], names=["ngram", "benchmark", "item_id"])
    matched = hits.join(tools.spark.createDataFrame(table, "ngram string, benchmark string, item_id string"), "ngram")
    rows = matched.groupBy("doc_id", "benchmark", "item_id").agg(f.min_by("ngram", "position").alias("ngram"))
    return rows.withColumns({"action": f.lit("drop_document"), "interval": f.lit(tools.interval)})


def _metrics(documents: DataFrame, contamination: DataFrame) -> dict[str, Any]:
    from pyspark.sql import functions as f

    marked = documents.select("doc_id", "n_bytes").join(contamination.select("doc_id").distinct().withColumn("dirty", f.lit(1)), "doc_id", "left")
    row = marked.agg(
        f.count("*").alias("documents"), f.sum("dirty").alias("dirty"), f.sum(f.when(f.col("dirty") == 1, f.col("n_bytes"))).alias("bytes")
    ).collect()[0]
    by_benchmark = {r["benchmark"]: r["count"] for r in contamination.groupBy("benchmark").count().collect()}
    return {
        "documents": row["documents"], "contaminated_documents": row["dirty"] or 0, "contaminated_bytes": row["bytes"] or 0,
        "contamination_by_benchmark": dict(sorted(by_benchmark.items())),
    }  # fmt: skip
