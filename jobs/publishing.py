"""Write, audit, publish: rows go to a staging area, Great Expectations checks them there, one atomic commit per table makes them visible."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from expectations.tables import TABLES, Table
from jobs.config import WRITERS
from jobs.contract import CheckFailed, CommitConflict, MoelineError, StageOutput, TableVersion
from jobs.environment import Environment
from jobs.inputs import Inputs
from jobs.services import delta, results
from jobs.services.locks import locked
from jobs.tools import StageTools

_ROW_GROUP = 2000  # a page of one task's answers opens the groups that hold it: 22 ms instead of 119 (40,000 answers, 20 tasks), the file no larger
_PANDAS_CHECK_BYTES = 512 << 20  # above this the checks run in Spark, where the rows do not have to fit this process


def stage_rows(env: Environment, module: ModuleType, output: StageOutput, tools: StageTools, interval: str | None, run_key: str) -> dict[str, Path]:
    """Write every output table as Parquet into the attempt's staging folder; returns the folder per table.

    Raises MoelineError when the stage returned other tables than it declares.
    """
    if set(output.tables) != set(module.WRITES):
        raise MoelineError(f"{module.__name__} declares {sorted(module.WRITES)} and returned {sorted(output.tables)}.")
    staged = {}
    for name in module.WRITES:
        table, folder = TABLES[name], tools.staging / name
        partition = str(interval) if table.partition == "interval" else run_key
        if type(output.tables[name]).__module__.startswith("pyarrow"):  # a Connect DataFrame seems to have every attribute
            _stage_arrow(output.tables[name], table, folder)
        else:
            from jobs.services.spark import cast_to_table

            cast_to_table(output.tables[name], table, partition).drop(table.partition).write.mode("overwrite").parquet(str(folder))
        staged[name] = folder
    return staged


def _stage_arrow(rows: Any, table: Table, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([f for f in delta.arrow_schema(table) if f.name != table.partition])
    missing = [f.name for f in schema if f.name not in rows.column_names]
    unknown = [c for c in rows.column_names if c not in table.column_names]
    if missing or unknown:
        raise MoelineError(f"Table {table.name}: missing columns {missing}, unknown columns {unknown}. The contract is expectations/tables.py.")
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows.select(schema.names).cast(schema), folder / "part-0.parquet", compression="zstd", row_group_size=_ROW_GROUP)


def check_staged(
    env: Environment, stage: str, staged: Mapping[str, Path], tools: StageTools, run_key: str, interval: str | None, output: StageOutput,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate every table's rules on the staged rows and store the results; returns counts for the stage's metrics.

    What the stage ``noticed`` itself is stored and told as a warning, but not counted: a small day always has a rule that nothing breaks.
    Raises CheckFailed when a rule of severity ``error`` is broken or the stage refuses its rows itself: they are moved aside, nothing is published.
    """
    from expectations import check

    attempt = tools.running.attempt.attempt_id
    found = []
    for name, folder in staged.items():
        size = sum(f.stat().st_size for f in folder.rglob("*.parquet"))
        if size <= _PANDAS_CHECK_BYTES:
            found += [(name, result) for result in _checked(env, TABLES[name], folder)]
        else:
            found += [(name, result) for result in check.evaluate(TABLES[name], tools.spark.read.parquet(str(folder)), engine="spark")]
    found += [(name, check.CheckResult(rule, "error", False, json.dumps(seen), 0)) for (name, rule), seen in output.refused.items()]
    broken = [(name, result) for name, result in found if not result.passed and result.severity == "error"]
    refused: Path | None = None
    if broken:
        refused = env.warehouse / "_refused" / stage / attempt
        refused.mkdir(parents=True, exist_ok=True)
        for name, folder in staged.items():
            os.replace(folder, refused / name)
    told = [(name, check.CheckResult(rule, "warning", False, json.dumps(seen), 0)) for (name, rule), seen in output.noticed.items()]
    now = dt.datetime.now(dt.UTC)
    rows = [
        {
            "checked_at": now, "run_key": run_key, "stage": stage, "interval": interval, "attempt_id": attempt, "table_name": name,
            "table_version": None, "rule": r.rule, "severity": r.severity, "observed": r.observed, "passed": r.passed, "failed_rows": r.failed_rows,
            "where_rejected": str(refused.relative_to(env.warehouse) / name) if refused and not r.passed else None,
        }
        for name, r in (*found, *told)
    ]  # fmt: skip
    delta.append(env, "checks", rows, once=f"checks/{attempt}")
    if broken:
        sentences = "\n".join(f"  {name}: {result.sentence()}; the rows are in {refused}/{name}" for name, result in broken)
        raise CheckFailed(f"{len(broken)} data checks of stage {stage} failed; nothing was published.\n{sentences}\nThe rules are in expectations/tables.py.")
    failed = [(name, r) for name, r in found if not r.passed]
    return {
        "checks_passed": len(found) - len(failed),
        "checks_failed": len(failed),
        "check_warnings": [f"{n}: {r.sentence()}" for n, r in (*failed, *told)][:10],
    }


def _checked(env: Environment, table: Table, folder: Path) -> list[Any]:
    """The rules of ``table`` evaluated by the platform's check server, or here when there is none."""
    from expectations import check, serve

    schema, address = _staged_schema(table), env.platform.get("check_socket")
    answered = serve.ask(str(address), table, folder.resolve(), schema) if address else None
    return check.evaluate_files(table, folder, schema) if answered is None else answered


def _staged_schema(table: Table) -> Any:
    import pyarrow as pa

    return pa.schema([f for f in delta.arrow_schema(table) if f.name != table.partition])


def turn(env: Environment, module: ModuleType) -> AbstractContextManager[None]:
    """Held from the commits to the record of a stage whose days depend on one another; the kernel ends it with the process."""
    return locked(env, f"publish--{module.__name__}") if getattr(module, "UNMOVED", ()) else nullcontext()


def publish_staged(env: Environment, module: ModuleType, staged: Mapping[str, Path], inputs: Inputs, metadata: Mapping[str, Any]) -> dict[str, TableVersion]:
    """One atomic commit per table, in the order the stage declares; returns the versions.

    A stage that reads other days of a table it writes (deduplication) commits only if no other day of it was recorded since. The caller
    holds the stage's ``turn`` until its own result is recorded. The table's version alone would not do: an attempt that ended between its
    commit and its record, or another recipe, moves the table for good, and no attempt after it would ever commit.
    """
    expected = {}
    for name in getattr(module, "UNMOVED", ()):
        read, now = inputs.versions.get(name), results.newest_version(env, WRITERS[name], name, inputs.configs[name])
        if now is not None and str(now) != read:
            raise CommitConflict(f"{name} moved from {read} to {now} while this attempt was computing. Run the stage again.")
        expected[name] = delta.latest(env, name) or TableVersion(name, 0)
    published = {}
    for name in module.WRITES:
        partition = str(inputs.interval) if TABLES[name].partition == "interval" else str(metadata["run_key"])
        published[name] = delta.publish(env, name, staged[name], partition_value=partition, metadata=metadata, expected=expected.get(name))
    return published
