"""Data days written into real tables and recorded as if their stages had run."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from expectations.tables import TABLES
from jobs import recipes
from jobs.contract import StageResult
from jobs.services import delta, results

RECIPE = recipes.load("smoke")


def write(env, stage: str, day: str, seconds: int, recorded: bool = True, config: str | None = None, **tables: list[dict]) -> None:
    outputs = {}
    for name, rows in tables.items():
        folder = env.home / "staged" / f"{stage}-{day}-{seconds}-{name}"
        folder.mkdir(parents=True)
        schema = pa.schema([f for f in delta.arrow_schema(TABLES[name]) if f.name != "interval"])
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "part-0.parquet")
        outputs[name] = str(delta.publish(env, name, folder, partition_value=day, metadata={}))
    if recorded:
        results.record(env, StageResult(
            stage=stage, run_key=f"{stage}-{day}-{seconds}", recipe="smoke", interval=day, inputs={}, outputs=outputs, metrics={}, cost_usd=0.0,
            wall_seconds=0.0, config_hash=config or RECIPE.config_hash(stage), code_revision="x", finished_at=f"2026-11-03T00:00:{seconds:02d}Z",
        ))  # fmt: skip
