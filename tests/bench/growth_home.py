"""Homes as large as years of work make them, for bench_growth: as many files, commits and results as there would be, with little in each."""

from __future__ import annotations

import datetime as dt
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import builds
import pyarrow as pa
import pyarrow.parquet as pq

from expectations.tables import TABLES
from jobs import recipes
from jobs.config import WRITERS
from jobs.contract import StageResult
from jobs.environment import Environment
from jobs.services import compaction, delta

DAY_TABLES = ("duplicates", "repeated_passages", "unique_documents", "fingerprints", "training_documents", "sequences")
_CHUNK = 1000  # files named by one commit


def of_builds(env: Environment, number: int) -> None:
    """Results, charges, checks, forecasts, scores, registrations of builds: a file per run where a table has a partition per run, joined files elsewhere."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for k in range(number):
        build = builds.Build(k, 0.3 + 0.3 * k / number, 5.0, 1.0, recipe=f"recipe-{k % 20}", promoted=k % 50 == 1, day=-365.0 * (1 - k / number))
        builds.write(env, build, append=lambda _, table, new: rows[table].extend(new), record=_record)
    for name, new in rows.items():
        if TABLES[name].partition:
            _one_file_each(env, name, new)
        else:
            size = -(-len(new) // (compaction.FILES - 1))
            for first in range(0, len(new), size):
                delta.append(env, name, new[first : first + size])


def of_days(env: Environment, number: int) -> list[str]:
    """``number`` prepared days of recipe smoke, a commit each, and their names. A day keeps five documents and dropped one for the next day's."""
    days = [(dt.date(2019, 1, 1) + dt.timedelta(days=k)).isoformat() for k in range(number)]
    recipe = recipes.load("smoke")
    stages = sorted({WRITERS[name] for name in DAY_TABLES})
    for name in DAY_TABLES:
        rows = [row for k, day in enumerate(days) for row in _day_rows(name, day, days[min(k + 1, number - 1)])]
        _one_file_each(env, name, rows, files_a_commit=1)
    for k, day in enumerate(days):
        for stage in stages:
            outputs = {name: f"{name}@{k + 1}" for name in DAY_TABLES if WRITERS[name] == stage}
            key = f"{stage}-{day}".ljust(32, "0")
            _record(env, StageResult(
                stage=stage, run_key=key, recipe=recipe.name, interval=day, inputs={}, outputs=outputs, metrics={}, cost_usd=0.0, wall_seconds=1.0,
                finished_at=f"{day}T00:00:00Z", config_hash=recipe.config_hash(stage),
            ))  # fmt: skip
    return days


def _day_rows(name: str, day: str, kept_in: str) -> list[dict[str, Any]]:
    """Documents d0 to d4 of the day; d5 was dropped for d0 of ``kept_in``."""
    doc = [{"interval": day, "doc_id": f"{day}-{i}"} for i in range(5)]
    if name == "duplicates":
        return [{"interval": day, "doc_id": f"{day}-5", "kept_interval": kept_in, "kept_doc_id": f"{kept_in}-0"}]
    return [{**one, "band": 0, "hash": 0} if name in ("fingerprints", "repeated_passages") else one for one in doc]


def _record(env: Environment, result: StageResult) -> None:
    folder = env.warehouse / "_results" / result.stage
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result.run_key}.json").write_text(result.to_json())


def _one_file_each(env: Environment, name: str, rows: Sequence[dict[str, Any]], files_a_commit: int = _CHUNK) -> None:
    """A Parquet file for each value of the table's partition column, named by as many commits as it takes."""
    from deltalake.transaction import AddAction

    table, root = delta.create_if_missing(env, name), Path(delta.uri(env, name))
    column, actions = TABLES[name].partition, []
    schema = pa.schema([field for field in delta.arrow_schema(TABLES[name]) if field.name != column])
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row[column]].append({k: v for k, v in row.items() if k != column})
    for value, own in grouped.items():
        relative = f"{column}={value}/{uuid.uuid4().hex}.parquet"
        (root / relative).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(own, schema=schema), root / relative)
        stats = json.dumps({"numRecords": len(own)})
        actions.append(AddAction(relative, (root / relative).stat().st_size, {column: value}, int(time.time() * 1000), True, stats))
    for first in range(0, len(actions), files_a_commit):
        table.create_write_transaction(actions[first : first + files_a_commit], "append", table.schema(), partition_by=[column])
        table.update_incremental()
