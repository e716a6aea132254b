"""The columns of every table at every schema version since the first release. Homes hold such tables, so what was released never changes here.

`make golden` adds the shape of a new version; it never rewrites that of an old one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from expectations.migrations import MIGRATIONS, AddColumn
from expectations.tables import TABLES, Table

FILE = Path(__file__).with_name("table_shapes.json")
WHAT_TO_DO = "Raise its schema_version in expectations/tables.py, add a migration to expectations/migrations.py, then run `make golden`."


def shape(table: Table) -> dict[str, Any]:
    return {"columns": [f"{c.name} {c.type}" + " nullable" * c.nullable for c in table.columns], "partition": table.partition}


def shapes() -> dict[str, dict[str, Any]]:
    """By table and version. With MOELINE_REWRITE_GOLDEN the file gets the versions it lacks."""
    known = json.loads(FILE.read_text())
    if os.environ.get("MOELINE_REWRITE_GOLDEN"):
        for table in TABLES.values():
            known.setdefault(table.name, {}).setdefault(str(table.schema_version), shape(table))
        FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return known


def problem(table: Table, known: dict[str, Any]) -> str:
    """What is wrong with a table, and what to do, or ''."""
    version = str(table.schema_version)
    if version not in known:
        return f"{table.name} has schema version {version}, which tests/golden/table_shapes.json does not hold. Add a migration, then run `make golden`."
    if known[version] != shape(table):
        changed = sorted(set(known[version]["columns"]) ^ set(shape(table)["columns"]))
        return f"The columns of {table.name} changed ({', '.join(changed) or 'order or partition'}) and its schema version {version} did not. {WHAT_TO_DO}"
    return ""


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_columns_change_only_with_the_version(table):
    assert problem(table, shapes()[table.name]) == ""


def test_a_forgotten_version_is_told_with_what_to_do():
    table = TABLES["duplicates"]
    known = json.loads(json.dumps(shapes()[table.name]))
    known["2"]["columns"].remove("containment float64 nullable")
    assert problem(table, known) == f"The columns of duplicates changed (containment float64 nullable) and its schema version 2 did not. {WHAT_TO_DO}"


def test_no_table_is_dropped_in_silence():
    assert set(shapes()) == set(TABLES)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_migrations_lead_from_every_shape_to_the_next(table):
    known = shapes()[table.name]
    assert sorted(known, key=int) == [str(version) for version in range(1, table.schema_version + 1)]
    given = {migration.to: migration for migration in MIGRATIONS if migration.table == table.name}
    assert sorted(given) == list(range(2, table.schema_version + 1)) and len(given) == len([m for m in MIGRATIONS if m.table == table.name])
    for version, migration in given.items():
        before, after = known[str(version - 1)], known[str(version)]
        added = {f"{s.name} {s.type}" + " nullable" * (s.fill is None) for s in migration.steps if isinstance(s, AddColumn)}
        assert set(after["columns"]) - set(before["columns"]) == added, "a column without nulls is filled, a nullable one is not"
        assert set(before["columns"]) < set(after["columns"]) and before["partition"] == after["partition"]
        assert migration.why.endswith(".")


def test_a_fill_reads_a_column_there_was():
    for migration in MIGRATIONS:
        before = {column.split()[0] for column in shapes()[migration.table][str(migration.to - 1)]["columns"]}
        assert {s.fill.column for s in migration.steps if s.fill is not None} - {""} <= before
