"""Delta tables: create, publish staged Parquet in one atomic commit, append, read a version. All through delta-rs, no JVM.

Rows are written as Parquet first (by Spark or Arrow), checked, and only then named in the log: publishing is a commit of file
names, so it copies nothing and its cost does not grow with the rows. Spark reads the same tables through the Delta JARs.
"""

from __future__ import annotations

import datetime as dt
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expectations.tables import TABLES, Table
from jobs.contract import CommitConflict, MoelineError, TableVersion
from jobs.environment import Environment
from jobs.services import compaction, table_store
from jobs.services.locks import locked

if TYPE_CHECKING:
    import deltalake
    import pyarrow as pa
    import pyarrow.dataset

# Log and removed files are kept long enough to rebuild a training set years later (the default of 7 days is not).
_RETENTION = {"delta.logRetentionDuration": "interval 3650 days", "delta.deletedFileRetentionDuration": "interval 3650 days"}
_ATTEMPTS = 20


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of a column type of expectations/tables.py."""
    import pyarrow as pa

    return {
        "string": pa.string(), "int64": pa.int64(), "int32": pa.int32(), "float64": pa.float64(), "bool": pa.bool_(), "binary": pa.binary(),
        "timestamp": pa.timestamp("us", tz="UTC"), "list<int32>": pa.list_(pa.int32()), "list<float64>": pa.list_(pa.float64()),
        "list<string>": pa.list_(pa.string()),
    }[name]  # fmt: skip


def arrow_schema(table: Table) -> pa.Schema:
    """The Arrow schema of a table as declared in expectations/tables.py. Nullability is a checked rule, not a schema flag."""
    return arrow_fields({c.name: c.type for c in table.columns})


def arrow_fields(types: Mapping[str, str]) -> pa.Schema:
    """The Arrow schema of columns given as name to type."""
    import pyarrow as pa

    return pa.schema([pa.field(name, arrow_type(kind)) for name, kind in types.items()])


def uri(env: Environment, name: str) -> str:
    """Where a table lives; raises MoelineError for a name that is not in expectations/tables.py."""
    if name not in TABLES:
        raise MoelineError(f"Unknown table {name!r}. Known tables: {', '.join(sorted(TABLES))}.")
    return table_store.address(env, name)


def open_table(env: Environment, name: str, version: int | None = None) -> deltalake.DeltaTable | None:
    """The Delta table (at ``version``), or None when it has never been written."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        with table_store.asking(env.tables, OSError):
            return DeltaTable(uri(env, name), version=version, storage_options=table_store.delta_options(env))
    except TableNotFoundError:
        return None
    except DeltaError as error:
        raise MoelineError(f"Asked for {name}@{version}: {error}. `moeline report` lists the versions in use.") from None


def create_if_missing(env: Environment, name: str) -> deltalake.DeltaTable:
    """Open the table to write to it, creating it empty first if needed; several processes may ask at once.

    One written before a nullable column was declared gets that column. Raises MoelineError for a table of a later moeline, or one to be upgraded.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    from jobs.services import table_migrations  # which opens tables itself

    table = TABLES[name]
    configuration = {**_RETENTION, table_migrations.PROPERTY: str(table.schema_version)}
    for _ in range(_ATTEMPTS):
        found = open_table(env, name)
        if found is not None:
            return table_migrations.ready(env, name, found)
        try:
            DeltaTable.create(
                uri(env, name), schema=arrow_schema(table), partition_by=[table.partition] if table.partition else None,
                configuration=configuration, description=table.about, raise_if_key_not_exists=False, storage_options=table_store.delta_options(env),
            )  # fmt: skip
        except (DeltaError, OSError):
            time.sleep(0.05)  # somebody else is creating it
    raise MoelineError(f"Could not create table {name} at {uri(env, name)}.")


def writers_lock(name: str) -> str:
    """Name of the lock that every writer of a table holds (shared) from the first file of a commit to the commit itself.

    While nobody holds it, a file that no commit names was left by a dead process (jobs/gc.py).
    """
    return f"table--{name}"


def latest(env: Environment, name: str) -> TableVersion | None:
    """Newest version of a table, or None when it has never been written."""
    table = open_table(env, name)
    return None if table is None else TableVersion(name, table.version())


def _add_actions(root: Path, table: Table, partition_value: str, staged: Path) -> list[Any]:
    """Move staged Parquet files beside the table's own (still invisible) and describe them for the log."""
    import pyarrow.parquet as pq
    from deltalake.transaction import AddAction

    actions = []
    for file in sorted(staged.rglob("*.parquet")):
        rows = pq.read_metadata(file).num_rows
        if rows == 0:
            continue
        relative = f"{table.partition}={partition_value}/{uuid.uuid4().hex}.parquet"
        size = file.stat().st_size
        table_store.put(file, root / relative)
        stats = json.dumps({"numRecords": rows})
        actions.append(AddAction(relative, size, {table.partition: partition_value}, int(time.time() * 1000), True, stats))
    return actions


def publish(
    env: Environment, name: str, staged: Path, *, partition_value: str, metadata: Mapping[str, Any], expected: TableVersion | None = None
) -> TableVersion:
    """Replace one partition by the staged Parquet files, in one atomic commit; returns the version that holds them.

    ``metadata`` (run key, code revision, ...) is stored as the commit's userMetadata. With ``expected`` the commit happens only if
    the table still is at that version (0: created, no rows yet), else CommitConflict.
    """
    with locked(env, writers_lock(name), shared=True), table_store.asking(env.tables, OSError):
        current = create_if_missing(env, name)
        actions = _add_actions(table_store.root(env, name), TABLES[name], partition_value, staged)
        return _replace(env, current, name, actions, partition_value, {"userMetadata": json.dumps(dict(metadata), sort_keys=True)}, expected)


def _replace(
    env: Environment, current: deltalake.DeltaTable, name: str, actions: list[Any], partition_value: str, metadata: dict[str, str],
    expected: TableVersion | None,
) -> TableVersion:  # fmt: skip
    from deltalake import CommitProperties, Transaction
    from deltalake.exceptions import CommitFailedError

    table, app_id = TABLES[name], f"{name}/{partition_value}"
    for _ in range(_ATTEMPTS):
        if expected is not None and current.version() != expected.version:
            raise CommitConflict(f"{name} moved from {expected} to {name}@{current.version()} while this attempt was computing. Run the stage again.")
        # One application id per table and partition, its version rising with every attempt: a date as version would make
        # Delta silently skip backfills of earlier days.
        read = current.version()
        txn = Transaction(app_id, (current.transaction_version(app_id) or 0) + 1)
        properties = CommitProperties(custom_metadata=metadata, max_commit_retries=0, app_transactions=[txn])
        try:
            current.create_write_transaction(
                actions, "overwrite", arrow_schema(table), [table.partition], [(table.partition, "=", partition_value)], commit_properties=properties
            )
            # Without retries the commit can only have become the next version (delta-rs' history() numbers commits by counting
            # back from a version it read earlier, so under concurrent commits it names the wrong one).
            return TableVersion(name, read + 1)
        except CommitFailedError:
            # Another partition was committed first. Ours is replaced as a whole, so committing on top of it is always right.
            time.sleep(0.02)
            current = create_if_missing(env, name)
    raise CommitConflict(f"{name}: {_ATTEMPTS} commits in a row lost the race. Run fewer days at once (backfill_max_active_runs).")


def append(env: Environment, name: str, rows: Sequence[Mapping[str, Any]], *, once: str | None = None) -> None:
    """Append rows to an append-only table. With ``once`` (an id) a second call with the same id writes nothing."""
    import pyarrow as pa
    from deltalake import CommitProperties, Transaction, write_deltalake

    if not rows:
        return
    current = create_if_missing(env, name)
    transactions = None
    if once is not None:
        if current.transaction_version(once) is not None:
            return
        transactions = [Transaction(once, 1)]
    data = pa.Table.from_pylist([dict(r) for r in rows], schema=arrow_schema(TABLES[name]))
    properties = CommitProperties(app_transactions=transactions, max_commit_retries=_ATTEMPTS)
    # Merged, because columns that were added later stand last in the table, wherever they are declared.
    with locked(env, writers_lock(name), shared=True), table_store.asking(env.tables, OSError):
        write_deltalake(current, data, mode="append", schema_mode="merge", commit_properties=properties)
    if len(current.file_uris()) >= compaction.FILES:
        compaction.join_files(env, name)


def dataset(env: Environment, version: TableVersion, *, where_in: Sequence[str] | None = None) -> pyarrow.dataset.Dataset:
    """Rows of a table version as a lazy Arrow dataset; ``where_in`` keeps only these values of the partition column."""
    table = open_table(env, version.name, version.version)
    if table is None:
        raise MoelineError(f"Asked for {version}, but {version.name} has never been written here. `moeline stage` writes it.")
    found = table.file_uris(file_pruning_predicate=[(TABLES[version.name].partition, "in", list(where_in))] if where_in is not None else None)
    return of_files(env, version, sorted(found) if where_in != [] else [])


def files_by_partition(env: Environment, version: TableVersion) -> dict[str, list[str]]:
    """The files of a table version by value of the partition column, as ``of_files`` takes them."""
    import pyarrow as pa

    table = open_table(env, version.name, version.version)
    if table is None:
        raise MoelineError(f"Asked for {version}, but {version.name} has never been written here. `moeline stage` writes it.")
    actions = pa.table(table.get_add_actions(flatten=True))
    found: dict[str, list[str]] = {}
    for path, value in zip(actions["path"].to_pylist(), actions[f"partition.{TABLES[version.name].partition}"].to_pylist(), strict=True):
        found.setdefault(str(value), []).append(f"{uri(env, version.name)}/{path}")
    return found


def of_files(env: Environment, version: TableVersion, found: Sequence[str]) -> pyarrow.dataset.Dataset:
    """Rows of these files of a table version as a lazy Arrow dataset. Raises MoelineError when one is gone."""
    try:
        return _of_files(env, version.name, found)
    except FileNotFoundError:
        raise MoelineError(
            f"{version} can no longer be read: files of it held a document that was forgotten (`moeline forget`) and are removed. Read the newest version; "
            "`moeline stale` lists the days to prepare again."
        ) from None


def _of_files(env: Environment, name: str, found: Sequence[str]) -> pyarrow.dataset.Dataset:
    import pyarrow as pa
    import pyarrow.dataset as ds

    schema, partition = arrow_schema(TABLES[name]), TABLES[name].partition
    if not found:
        return ds.dataset(schema.empty_table())
    partitioning = ds.partitioning(pa.schema([schema.field(partition)]), flavor="hive") if partition else None
    (*files, base), store = table_store.for_arrow(env, [*found, uri(env, name)])
    return ds.dataset(files, schema=schema, format="parquet", filesystem=store, partitioning=partitioning, partition_base_dir=base)


def rows_by_file(env: Environment, name: str, found: Sequence[str], columns: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Rows of these files of a table, in one scan, under the name each file was asked by."""
    rows: dict[str, list[dict[str, Any]]] = {file: [] for file in found}
    if not found:
        return rows
    given = _of_files(env, name, found)
    asked = {fragment.path: file for fragment, file in zip(given.get_fragments(), found, strict=True)}  # Arrow names them without file://
    names = list(columns if columns is not None else given.schema.names)
    table = given.to_table(columns=[*names, "__filename"])  # a field Arrow adds itself
    for path, row in zip(_values(table.column("__filename")), _as_dicts(table.select(names)), strict=True):
        rows[asked[path]].append(row)
    return rows


def rows(
    env: Environment, name: str, *, columns: Sequence[str] | None = None, where: Any = None, where_in: Sequence[str] | None = None
) -> list[dict[str, Any]]:  # fmt: skip
    """All rows of the newest version of a (small) table; [] when it has never been written.

    ``columns``: only these; ``where``: an Arrow expression; ``where_in``: only these values of the partition column, without opening the files of others.
    """
    newest = latest(env, name)
    if newest is None:
        return []
    found = dataset(env, newest, where_in=where_in).to_table(columns=None if columns is None else list(columns), filter=where)
    return _as_dicts(found)


def _as_dicts(table: pyarrow.Table) -> list[dict[str, Any]]:
    values = [_values(table.column(column)) for column in table.column_names]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*values, strict=True)]


def _values(column: pyarrow.ChunkedArray) -> list[Any]:
    """As ``to_pylist``, several times faster for text, numbers and timestamps: it makes no Arrow scalar of every value."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_string(kind):
        return list(column.to_numpy(zero_copy_only=False))
    if column.null_count == 0 and (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        return list(column.to_numpy(zero_copy_only=False).tolist())
    if column.null_count == 0 and pa.types.is_timestamp(kind) and (kind.unit, kind.tz) == ("us", "UTC"):
        since = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
        return [since + dt.timedelta(microseconds=one) for one in column.cast(pa.int64()).to_numpy().tolist()]
    return list(column.to_pylist())
