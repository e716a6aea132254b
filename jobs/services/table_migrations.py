"""Schema versions of Delta tables: read, refused where they are newer than this code, brought up to date.

The version is the table property ``moeline.schemaVersion``; a table without it is of the first release. What only adds columns is done by whoever opens
the table to write, because it touches no file. What fills a column for old rows writes files again, which takes time: only `moeline upgrade` does that.
Change here: how a step is done. Not here: which steps there are (expectations/migrations.py), reading and publishing (delta.py).
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expectations.migrations import AddColumn, Fill, steps_between
from expectations.tables import TABLES
from jobs.contract import CommitConflict, MoelineError
from jobs.environment import Environment
from jobs.services import delta, locks, table_store

if TYPE_CHECKING:
    import deltalake
    import pyarrow as pa

PROPERTY = "moeline.schemaVersion"
_ATTEMPTS = 20
_LOCK_SECONDS = 24 * 3600.0
Echo = Callable[[str], None]


@dataclass(frozen=True)
class Pending:
    """An older table: its version, the steps to ours, and the files (names below its folder, by value of the partition column) to be written again."""

    name: str
    found: int
    steps: tuple[AddColumn, ...]
    files: Mapping[str | None, tuple[str, ...]]
    n_bytes: int

    def __str__(self) -> str:
        return f"{self.name} (version {self.found}, now {TABLES[self.name].schema_version})"


def version_of(table: deltalake.DeltaTable) -> int:
    """Schema version of an opened table; 1 where none is written down: the first release wrote none. Raises MoelineError for what is no version."""
    said = table.metadata().configuration.get(PROPERTY) or "1"
    if not said.isdecimal() or int(said) < 1:
        raise MoelineError(f"{table.table_uri} says {PROPERTY} = {said[:100]!r}, which is no version. It was not written by moeline: restore it from a backup.")
    return int(said)


def pending(env: Environment, name: str, opened: deltalake.DeltaTable | None = None) -> Pending | None:
    """What the newest version of a table lacks, or None for one that is not there or up to date. Raises MoelineError for a newer one."""
    table, known = opened or delta.open_table(env, name), TABLES[name].schema_version
    if table is None or (found := version_of(table)) == known:
        return None
    if found > known:
        raise MoelineError(
            f"Table {name} in {delta.uri(env, name)} has schema version {found}; this version of moeline knows {known}. A later moeline wrote it: install "
            "that one, or restore a backup of before into another home. Nothing was changed."
        )
    steps = steps_between(name, found, known)
    files, n_bytes = _to_write_again(table_store.root(env, name), TABLES[name].partition, table, [s.name for s in steps if s.fill is not None])
    return Pending(name, found, steps, files, n_bytes)


def ready(env: Environment, name: str, opened: deltalake.DeltaTable) -> deltalake.DeltaTable:
    """The table, fit to be written to: columns that need no file written again are added. Raises MoelineError for a newer table, or one to be upgraded."""
    for _ in range(_ATTEMPTS):
        found = pending(env, name, opened)
        if found is None:
            return opened
        if found.files:
            raise _older([found])
        with contextlib.suppress(CommitConflict):  # somebody else does the same: see what is left
            _declare(found, opened)
        opened = _newest(env, name)
    raise CommitConflict(f"{name}: {_ATTEMPTS} commits in a row lost the race. Run fewer days at once (backfill_max_active_runs).")


def require_current(env: Environment, names: Iterable[str] = TABLES) -> None:
    """Refuse, before anything is computed or started, tables of a later moeline and those that only `moeline upgrade` brings up to date; do the rest."""
    found = [one for one in (pending(env, name) for name in names) if one is not None]
    if older := [one for one in found if one.files]:
        raise _older(older)
    for one in found:
        ready(env, one.name, _newest(env, one.name))


def upgrade(env: Environment, *, only_look: bool = False, echo: Echo = lambda line: None) -> dict[str, Any]:
    """Bring every table to this version's columns; returns what `moeline upgrade --json` prints. Killed and run again, it goes on with what is left.

    A table changes in one commit: readers see all of it or nothing, and older versions stay as they are. ``only_look`` changes nothing. Raises
    MoelineError, having changed nothing, when a table is newer than this code.
    """
    from jobs.services.platform.record import locked

    began = time.monotonic()
    waiting = contextlib.nullcontext() if only_look else locked(
        locks.file_of(env, "upgrade"), timeout_seconds=_LOCK_SECONDS, waiting=lambda: echo("Another `moeline upgrade` is at work; waiting for it.")
    )  # fmt: skip
    with waiting if env.home.is_dir() else contextlib.nullcontext():
        found = [one for one in (pending(env, name) for name in TABLES) if one is not None]
        done = [_told(env, one) for one in found] if only_look else [_upgraded(env, one.name, echo) for one in found]
    return {"upgraded": not only_look, "tables": [row for row in done if row], "seconds": round(time.monotonic() - began, 1)}


def _older(found: Sequence[Pending]) -> MoelineError:
    files = sum(len(names) for one in found for names in one.files.values())
    return MoelineError(
        f"Written by an earlier version of moeline: {', '.join(map(str, found))}. {files:,} files have to be written again, which takes a while, so it is not "
        "done by the way. Run: moeline upgrade"
    )


def _newest(env: Environment, name: str) -> deltalake.DeltaTable:
    found = delta.open_table(env, name)
    if found is None:
        raise MoelineError(f"Table {name} was removed from {delta.uri(env, name)} just now. Restore it from a backup.")
    return found


def _told(env: Environment, one: Pending) -> dict[str, Any]:
    files = sum(map(len, one.files.values()))
    version = _newest(env, one.name).version()
    return {"table": one.name, "from": one.found, "to": TABLES[one.name].schema_version, "files": files, "bytes": one.n_bytes, "version": version}


def _upgraded(env: Environment, name: str, echo: Echo) -> dict[str, Any] | None:
    for _ in range(_ATTEMPTS):
        opened = _newest(env, name)
        one = pending(env, name, opened)
        if one is None:
            return None  # done meanwhile
        with contextlib.suppress(CommitConflict):
            if one.files:
                echo(f"  {one}: {sum(map(len, one.files.values())):,} files, {one.n_bytes / 1e6:.1f} MB")
                with locks.locked(env, delta.writers_lock(name), shared=True):  # or `moeline gc` would take its files for left behind
                    _write_again(env, one, opened, echo)
                opened = _newest(env, name)
            _declare(one, opened)
            return _told(env, one)
    raise CommitConflict(f"{name} is written to all the time. Run `moeline upgrade` when less is going on.")


# -- one table --------------------------------------------------------------------------------------------------------------


def _declare(one: Pending, table: deltalake.DeltaTable) -> None:
    """Commits that touch no file: the columns, then the version, so that a kill between them leaves an older table."""
    from deltalake import CommitProperties, Field
    from deltalake.exceptions import CommitFailedError

    known = {field.name for field in table.schema().fields}
    columns = delta.arrow_fields({step.name: step.type for step in one.steps if step.name not in known})
    once = CommitProperties(max_commit_retries=0)
    try:
        if columns:
            table.alter.add_columns([Field.from_arrow(column) for column in columns], commit_properties=once)
        table.alter.set_table_properties({PROPERTY: str(TABLES[one.name].schema_version)}, raise_if_not_exists=False, commit_properties=once)
    except CommitFailedError as lost:
        raise CommitConflict(f"{one.name}: {lost}") from None


def _to_write_again(root: Path, partition: str, table: deltalake.DeltaTable, filled: Sequence[str]) -> tuple[dict[str | None, tuple[str, ...]], int]:
    """All files, with their bytes, of partitions in which a row lacks a value that has to be filled. Only footers are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not filled:
        return {}, 0
    files: dict[str | None, list[str]] = {}
    lacking, size = set[str | None](), dict[str | None, int]()
    for action in pa.table(table.get_add_actions(flatten=True)).to_pylist():
        value = action.get(f"partition.{partition}")
        files.setdefault(value, []).append(action["path"])
        size[value] = size.get(value, 0) + action["size_bytes"]
        if value not in lacking:
            with (root / action["path"]).open("rb") as file:
                if _lacks(pq.read_metadata(file), filled):
                    lacking.add(value)
    if lacking and not partition:
        lacking = set(files)
    return {value: tuple(files[value]) for value in lacking}, sum(size[value] for value in lacking)


def _lacks(footer: Any, filled: Sequence[str]) -> bool:
    for k in range(footer.num_row_groups):
        columns = [footer.row_group(k).column(c) for c in range(footer.num_columns)]
        nulls = {column.path_in_schema: column.statistics.null_count if column.statistics else None for column in columns}
        if any(nulls.get(name) != 0 for name in filled):
            return True
    return False


def _write_again(env: Environment, one: Pending, table: deltalake.DeltaTable, echo: Echo) -> None:
    """Files beside the old ones, which no reader sees, then one commit that names them in place of those."""
    from deltalake import CommitProperties
    from deltalake.exceptions import CommitFailedError
    from deltalake.transaction import AddAction

    partition, root = TABLES[one.name].partition, table_store.root(env, one.name)
    actions, said, total = [], time.monotonic(), sum(map(len, one.files.values()))
    for value, names in one.files.items():
        for name in names:
            made, rows = _filled(one, root, name)
            values = {partition: value} if partition else {}
            actions.append(AddAction(made, (root / made).stat().st_size, values, int(time.time() * 1000), True, json.dumps({"numRecords": rows})))
            if time.monotonic() - said > 2.0:
                said = time.monotonic()
                echo(f"    {len(actions):,} of {total:,} files")
    told = {"stage": "upgrade", "schema_version": TABLES[one.name].schema_version}
    properties = CommitProperties(custom_metadata={"userMetadata": json.dumps(told)}, max_commit_retries=0)
    where = [(partition, "in", list(one.files))] if partition else None
    try:
        table.create_write_transaction(
            actions, "overwrite", delta.arrow_schema(TABLES[one.name]), [partition] if partition else None, where, commit_properties=properties
        )
    except CommitFailedError as lost:
        for action in actions:
            (root / action.path).unlink(missing_ok=True)
        raise CommitConflict(f"{one.name}: {lost}") from None


def _filled(one: Pending, root: Path, name: str) -> tuple[str, int]:
    """Write a file again with all columns of this version; returns (its name, rows). Memory is that of one batch of rows."""
    import pyarrow.parquet as pq

    table = TABLES[one.name]
    schema = delta.arrow_fields({c.name: c.type for c in table.columns if c.name != table.partition})
    made, rows = str(Path(name).parent / f"{uuid.uuid4().hex}.parquet"), 0
    with (
        (root / name).open("rb") as old,
        (root / made).open("wb") as new,
        pq.ParquetFile(old) as reading,
        pq.ParquetWriter(new, schema, compression="zstd") as writing,
    ):
        for batch in reading.iter_batches():
            rows += batch.num_rows
            writing.write_batch(_complete(batch, one.steps, schema))
    return made, rows


def _complete(batch: pa.RecordBatch, steps: Sequence[AddColumn], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    for step in steps:
        kind = delta.arrow_type(step.type)
        column = columns.get(step.name)
        column = pa.nulls(batch.num_rows, kind) if column is None else column.cast(kind)
        if step.fill is not None and column.null_count:
            column = pc.if_else(pc.is_null(column), _values(step.fill, columns, batch.num_rows, kind), column)
        columns[step.name] = column
    whole = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(batch.num_rows, f.type) for f in schema]
    return pa.record_batch(whole, schema=schema)


def _values(fill: Fill, columns: Mapping[str, Any], rows: int, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if not fill.column:
        return pa.array([fill.otherwise] * rows, kind)
    return pa.array([fill.by_value.get(value, fill.otherwise) for value in columns[fill.column].to_pylist()], kind)


def render(found: Mapping[str, Any]) -> str:
    """The outcome for a person."""
    if not found["tables"]:
        return "Every table has the columns of this version: nothing to do.\n"
    lines = [f"  {t['table']}: {t['from']} -> {t['to']}" + (f", {t['files']:,} files written again" if t["files"] else "") for t in found["tables"]]
    head = f"{len(found['tables'])} tables brought up to date ({found['seconds']:.0f} s):" if found["upgraded"] else "`moeline upgrade` would bring up to date:"
    return "\n".join([head, *lines]) + "\n"
