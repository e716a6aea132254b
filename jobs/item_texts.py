"""The texts of every benchmark item in use, for decontamination: own-data items of all days, the symbolic tasks, Foundry's tasks when given.

Change here: which items a day is checked against. Not here: how items are made (models/gauntlet), what counts as a match (jobs/decontamination.py).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jobs.config import SuiteConfig
from jobs.contract import MoelineError, Tools
from models.gauntlet import own_data, symbolic, tasks

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame


def own_items(suite: SuiteConfig, held_out: pa.Table) -> list[dict[str, Any]]:
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


def own_texts(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    by_task: dict[str, list[tasks.Item]] = defaultdict(list)
    for row in rows:
        by_task[row["benchmark"]].append(tasks.Item(row["item_id"], json.loads(row["item"])))
    for label, items in by_task.items():
        yield from _texts(tasks.Benchmark(tasks.Task(label=label, kind=tasks.MULTIPLE_CHOICE, category="own_data"), tuple(items)))


def _texts(benchmark: tasks.Benchmark) -> Iterator[tuple[str, str, str]]:
    for item_id, text in tasks.item_texts(benchmark):
        yield benchmark.task.label, item_id, text


def other_days(benchmark_items: DataFrame | None, suite: SuiteConfig) -> Iterator[tuple[str, str, str]]:
    """Texts of the own-data items of all other days."""
    if benchmark_items is None:
        return
    in_use = benchmark_items.where(benchmark_items["benchmark"].isin(list(suite.own_data_tasks)))
    yield from own_texts(in_use.select("benchmark", "item_id", "item").toArrow().to_pylist())


def fixed_texts(suite: SuiteConfig, tools: Tools) -> Iterator[tuple[str, str, str]]:
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
