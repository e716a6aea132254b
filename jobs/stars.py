"""Which of many similar documents are kept: stars around kept documents, decided in a fixed order, on one machine or in Spark.

The kept documents are the lexicographically first maximal independent set of the graph of similar pairs, the order being that
of the pairs' direction (kept before dropped). It is unique, so both ways of computing it give the same rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

    from jobs.contract import Tools

DROPPED = "doc_id string, kept_interval string, kept_doc_id string, jaccard double"
_ROUNDS = 10_000  # a round decides at least one document and usually nearly all: real clusters need two to five rounds


def decide(pairs: pa.Table, interval: str) -> pa.Table:
    """Documents to drop, one row each with the one kept in its place (columns of DROPPED), sorted by doc_id.

    ``pairs``: kept_interval, kept_doc_id, doc_id, jaccard; every pair similar enough, directed from the document that comes first in
    the order to the later one. Documents of another interval than ``interval`` are kept already.
    """
    import pyarrow as pa

    partners: dict[str, list[tuple[bool, float, str, str]]] = {}
    for kept_interval, kept_doc_id, doc_id, jaccard in zip(*(pairs[c].to_pylist() for c in ("kept_interval", "kept_doc_id", "doc_id", "jaccard")), strict=True):
        partners.setdefault(doc_id, []).append((kept_interval == interval, -jaccard, kept_interval, kept_doc_id))
    chosen: dict[str, tuple[bool, float, str, str]] = {}
    decided: set[str] = set()
    for first in partners:
        waiting = [first]  # depth first without recursion: a document is decided after everything that comes before it
        while waiting:
            doc_id = waiting[-1]
            earlier = [p[3] for p in partners.get(doc_id, ()) if p[0] and p[3] not in decided]
            if earlier:
                waiting += earlier
                continue
            waiting.pop()
            if doc_id not in decided:
                decided.add(doc_id)
                kept = [p for p in partners.get(doc_id, ()) if not p[0] or p[3] not in chosen]
                if kept:
                    chosen[doc_id] = min(kept)
    rows = sorted((doc_id, kept_interval, kept_doc_id, -negative) for doc_id, (_, negative, kept_interval, kept_doc_id) in chosen.items())
    columns: list[Any] = [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], [], []]
    schema = pa.schema([("doc_id", pa.string()), ("kept_interval", pa.string()), ("kept_doc_id", pa.string()), ("jaccard", pa.float64())])
    return pa.table(columns, schema=schema)


def decide_in_spark(pairs: DataFrame, interval: str, tools: Tools) -> DataFrame:
    """The same decision for pairs that do not fit one process: rounds of joins until nothing is undecided.

    A round drops the partners of kept documents, then keeps the documents that no undecided earlier one can drop any more.
    """
    from pyspark.sql import functions as f

    here = f.col("kept_interval") == interval
    kept = pairs.where(~here).select("kept_interval", "kept_doc_id").distinct()
    undecided = pairs
    starts = pairs.where(here).select(f.col("kept_doc_id").alias("doc_id")).distinct().join(pairs.select("doc_id"), "doc_id", "left_anti")
    kept = tools.materialise(kept.union(starts.select(f.lit(interval), "doc_id")))
    for _ in range(_ROUNDS):
        dropped = undecided.join(kept, ["kept_interval", "kept_doc_id"], "left_semi").select("doc_id").distinct()
        hub_dropped = dropped.select(f.lit(interval).alias("kept_interval"), f.col("doc_id").alias("kept_doc_id"))
        left = undecided.join(dropped, "doc_id", "left_anti")
        remaining = tools.materialise(left.join(hub_dropped, ["kept_interval", "kept_doc_id"], "left_anti"))
        freed = left.select("doc_id").distinct().join(remaining.select("doc_id"), "doc_id", "left_anti")
        kept = tools.materialise(kept.union(freed.select(f.lit(interval), "doc_id")))
        undecided = remaining
        if undecided.isEmpty():
            break
    else:
        raise RuntimeError(f"still undecided after {_ROUNDS} rounds: the pairs are not directed by one order")
    best = f.min(f.struct(here.alias("here"), (-f.col("jaccard")).alias("negative"), "kept_interval", "kept_doc_id")).alias("best")
    chosen = pairs.join(kept, ["kept_interval", "kept_doc_id"], "left_semi").groupBy("doc_id").agg(best)
    return chosen.select("doc_id", "best.kept_interval", "best.kept_doc_id", (-f.col("best.negative")).alias("jaccard"))
