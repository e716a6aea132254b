"""Who is kept, decided in Spark and in one process: the same rows over random graphs of similar pairs."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest

from jobs.stars import PAIRS, decide, decide_in_spark

DAY, EARLIER = "2026-11-02", ("2026-10-31", "2026-11-01", "2026-11-03")
SCHEMA = pa.schema([
    ("kept_interval", pa.string()), ("kept_doc_id", pa.string()), ("doc_id", pa.string()), ("jaccard", pa.float64()), ("containment", pa.float64()),
])  # fmt: skip


def random_graphs(seed: int, count: int) -> pa.Table:
    """Pairs of ``count`` graphs that share no document: sparse and dense ones, chains, documents of other days, equal similarities, equal ids."""
    rng = random.Random(seed)
    rows = []
    for graph in range(count):
        size, density = rng.randint(2, 40), rng.choice((0.02, 0.05, 0.1, 0.3))
        names = [f"{seed}-{graph:03d}-{rng.random():.6f}" for _ in range(size)]  # their order is not the order of keeping
        edges = [(DAY, a, b) for i, a in enumerate(names) for b in names[i + 1 :] if rng.random() < density]
        edges += [(DAY, a, b) for a, b in pairwise(names) if graph % 5 == 0]
        edges += [(rng.choice(EARLIER), rng.choice((f"o{rng.randint(0, 3)}", rng.choice(names))), rng.choice(names)) for _ in range(rng.randint(0, 4))]
        rows += [(*edge, rng.choice((0.7, 0.8, 0.9, rng.random())), rng.choice((0.7, 0.8, 0.9, rng.random()))) for edge in sorted(set(edges))]
    rng.shuffle(rows)
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)


@pytest.mark.parametrize("measure", ["jaccard", "containment"])
def test_both_ways_give_the_same_rows_over_random_graphs(tools: Any, measure: str) -> None:
    pairs = random_graphs(seed=len(measure), count=80)
    here = decide(pairs, DAY, measure)
    in_spark = decide_in_spark(tools.spark.createDataFrame(pairs, PAIRS).repartition(3), DAY, tools, measure).toArrow().sort_by("doc_id")
    assert in_spark.to_pylist() == here.to_pylist()
    assert 300 < here.num_rows < len(set(pairs["doc_id"].to_pylist())), "some are dropped and some of the possible ones kept"
