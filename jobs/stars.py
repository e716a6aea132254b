"""Which of many similar documents are kept: stars around kept documents, decided in a fixed order, on one machine or in Spark.

The kept documents are the lexicographically first maximal independent set of the graph of similar pairs, the order being that
of the pairs' direction (kept before dropped). It is unique, so both ways of computing it give the same rows.

Pairs have the columns of PAIRS; each is there once, is similar enough and is directed from the document that comes first in the order to the
later one. Documents of another interval than the day's are kept already. ``measure`` names the column by which the most similar kept
partner is found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from pyspark.sql import DataFrame

    from jobs.contract import Tools

PAIRS = "kept_interval string, kept_doc_id string, doc_id string, jaccard double, containment double"
_ROUNDS = 10_000  # a round decides at least one document and usually nearly all: real clusters need two to five rounds


def decide(pairs: pa.Table, interval: str, measure: str = "jaccard") -> pa.Table:
    """The pairs that say who is dropped and for whom: one per dropped document, sorted by its id.

    Holds every pair in numpy arrays, at about three times the size of the Arrow table; time grows with the number of pairs.
    """
    import numpy as np
    import pyarrow.compute as pc

    here = pc.equal(pairs["kept_interval"], interval).to_numpy()
    doc, hub = _ranks(pairs["doc_id"], pairs["kept_doc_id"])
    (day,) = _ranks(pairs["kept_interval"])
    dropped = _dropped(hub, doc, here)
    usable = np.flatnonzero(~here | ~dropped[hub])
    keys = (hub, day, -pairs[measure].to_numpy(), here, doc)  # the last one counts first
    ordered = usable[np.lexsort([key[usable] for key in keys])]
    return pairs.take(ordered[np.unique(doc[ordered], return_index=True)[1]])


def _ranks(*columns: pa.ChunkedArray) -> list[np.ndarray]:
    """The columns with every string replaced by its place among all of their strings in order, from 0."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    coded = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()).combine_chunks().dictionary_encode()
    ranks = np.empty(len(coded.dictionary), np.int64)
    ranks[pc.sort_indices(coded.dictionary).to_numpy()] = np.arange(len(ranks))
    return np.split(ranks[coded.indices.to_numpy()], np.cumsum([len(column) for column in columns])[:-1])


def _dropped(hub: np.ndarray, doc: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Whether a document is dropped, by number: decided as soon as all that come before it are (Kahn's topological order)."""
    import numpy as np

    count = max(hub.max(initial=-1), doc.max(initial=-1)) + 1
    dropped = np.zeros(count, bool)
    dropped[doc[~here]] = True
    by_hub = np.flatnonzero(here)[np.argsort(hub[here], kind="stable")]
    later, starts = doc[by_hub], np.searchsorted(hub[by_hub], np.arange(count + 1))
    undecided = np.bincount(later, minlength=count)  # documents before it that are not decided yet
    ready = [int(first) for first in np.unique(hub[here]) if not undecided[first]]
    while ready:
        first = ready.pop()
        partners = later[starts[first] : starts[first + 1]]
        if not dropped[first]:
            dropped[partners] = True
        undecided[partners] -= 1
        ready += partners[undecided[partners] == 0].tolist()
    if undecided.any():
        raise RuntimeError("some documents wait for each other: the pairs are not directed by one order")
    return dropped


def decide_in_spark(pairs: DataFrame, interval: str, tools: Tools, measure: str = "jaccard") -> DataFrame:
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
    order = [here.alias("here"), (-f.col(measure)).alias("negative"), f.col("kept_interval"), f.col("kept_doc_id")]
    best = f.min(f.struct(*order, "jaccard", "containment")).alias("best")
    chosen = pairs.join(kept, ["kept_interval", "kept_doc_id"], "left_semi").groupBy("doc_id").agg(best)
    return chosen.select("best.kept_interval", "best.kept_doc_id", "doc_id", "best.jaccard", "best.containment")
