"""Tables as earlier releases wrote them, made with deltalake alone from the shapes in tests/golden/table_shapes.json."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from expectations.tables import TABLES
from jobs.environment import Environment
from jobs.services import delta

SHAPES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent.parent / "golden" / "table_shapes.json").read_text())
EARLIER = [(name, int(version)) for name, shapes in SHAPES.items() for version in shapes if int(version) < TABLES[name].schema_version]
PARTS = ("2026-01-01", "2026-01-02")  # values of the partition column; a run key may be any text


def columns(name: str, version: int) -> dict[str, str]:
    """Type of every column of a table at a schema version."""
    return {column.split()[0]: column.split()[1] for column in SHAPES[name][str(version)]["columns"]}


def rows(name: str, version: int, part: str, n: int = 3) -> list[dict[str, Any]]:
    """Rows of that shape which keep the rules of the table as it is today; every second one has null where it may."""
    optional = {column.split()[0] for column in SHAPES[name][str(version)]["columns"] if column.endswith(" nullable")}
    partition = SHAPES[name][str(version)]["partition"]
    found = []
    for k in range(n):
        row = {column: _value(name, column, kind, k) for column, kind in columns(name, version).items()}
        row |= {column: None for column in optional if k % 2}
        found.append(row | ({partition: part} if partition else {}))
    return found


def _value(name: str, column: str, kind: str, k: int) -> Any:
    asked = {rule.expectation: rule.arguments for rule in TABLES[name].all_rules if rule.columns == (column,)}
    if allowed := asked.get("ExpectColumnValuesToBeInSet"):
        return allowed["value_set"][-1 - k % len(allowed["value_set"])]
    if limits := asked.get("ExpectColumnValuesToBeBetween"):
        return limits.get("min_value", 0) + (1 if kind.startswith("int") else 0.25)
    values = {
        "string": f"{column}-{k}", "int64": 7 + k, "int32": k, "float64": 0.5 + k, "bool": bool(k % 2), "binary": b"b",
        "timestamp": dt.datetime(2026, 1, 1, k, tzinfo=dt.UTC), "list<int32>": [k, 2], "list<float64>": [0.5], "list<string>": ["a", "b"],
    }  # fmt: skip
    return values[kind]


def write(env: Environment, name: str, version: int = 1) -> list[dict[str, Any]]:
    """The table at that schema version, one commit per part; returns its rows."""
    schema = pa.schema([(column, delta.arrow_type(kind)) for column, kind in columns(name, version).items()])
    partition = SHAPES[name][str(version)]["partition"]
    where = str(env.warehouse / name)
    DeltaTable.create(where, schema=schema, partition_by=[partition] if partition else None)
    written = []
    for part in PARTS:
        written += rows(name, version, part)
        write_deltalake(where, pa.Table.from_pylist(rows(name, version, part), schema=schema), mode="append")
    return written


def ordered(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found, key=lambda row: json.dumps(row, sort_keys=True, default=str))


def held(env: Environment, name: str, names: tuple[str, ...] | None = None, version: int | None = None) -> list[dict[str, Any]]:
    """Rows of a table (at one of its Delta versions), in one order."""
    from jobs.contract import TableVersion

    at = delta.latest(env, name) if version is None else TableVersion(name, version)
    return ordered(delta.dataset(env, at).to_table(columns=names and list(names)).to_pylist())
