"""What of a forgotten document is left on disk, and how it goes: rows of runs are written again without it, files of older versions are removed.

A file mentions a document where one of its columns holds the doc_id: alone, in a list, or inside an id or JSON made of it. The text columns are
not searched for it, because any text may quote an id. Change here: what counts as left, what is removed. Not here: the order (jobs/forget.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expectations.tables import TABLES
from jobs.config import WRITERS
from jobs.contract import MoelineError, StageResult, TableVersion, is_held_out
from jobs.environment import Environment
from jobs.seen_by import days_read
from jobs.services import delta, ledger, locks, results, table_files, table_store
from jobs.services.tombstones import Request
from jobs.stale import is_without_forgotten
from jobs.tools import attempt_lock

_QUOTING = {"text", "tokens"}  # columns that hold what a document says, not which it is
_NAMELESS = {"quarantine", "benchmark_items"}  # may hold a document's text without naming it: no older version of its days stays
_SEARCHED = {".json", ".jsonl", ".csv", ".txt", ".html", ".md"}
_ITEM = ("benchmark", "item_id")


def mentions(file: Path, doc_ids: Sequence[str]) -> int:
    """Rows of a Parquet file that name one of ``doc_ids``; its text columns are not opened."""
    import pyarrow.parquet as pq

    with file.open("rb") as content, pq.ParquetFile(content) as opened:
        columns = [field.name for field in opened.schema_arrow if field.name not in _QUOTING and _is_text(field.type)]
        return sum(len(_naming(batch, doc_ids)) for batch in opened.iter_batches(columns=columns)) if columns else 0


def _is_text(kind: Any) -> bool:
    import pyarrow.types as t

    inner = kind.value_type if t.is_list(kind) else kind
    return t.is_string(inner) or t.is_large_string(inner)


def _naming(rows: Any, doc_ids: Sequence[str]) -> set[int]:
    """Places of the rows (a table or a batch) that name one of ``doc_ids``."""
    import pyarrow as pa

    if isinstance(rows, pa.RecordBatch):
        return _places(rows, "|".join(doc_ids))
    found, before = set(), 0
    for batch in rows.to_batches():
        found |= {before + place for place in _places(batch, "|".join(doc_ids))}
        before += batch.num_rows
    return found


def _places(batch: Any, pattern: str) -> set[int]:
    import pyarrow.compute as pc
    import pyarrow.types as t

    found: set[int] = set()
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if field.name in _QUOTING or not _is_text(field.type):
            continue
        values = pc.list_flatten(column) if t.is_list(field.type) else column
        hits = pc.fill_null(pc.match_substring_regex(values, pattern), False).to_numpy(zero_copy_only=False).nonzero()[0]
        found.update((pc.list_parent_indices(column).to_numpy()[hits] if t.is_list(field.type) else hits).tolist())
    return found


# -- rows of runs -----------------------------------------------------------------------------------------------------------


def clear_runs(env: Environment, request: Request) -> list[str]:
    """Publish the rows of evaluations and reviews again without answers to items made of the documents, and let their results name the new
    version; returns the new versions. A call that was interrupted goes on where it stopped."""
    items, written = changed_items(env, request), []
    for name, table in TABLES.items():
        if table.partition != "run_key":
            continue
        for result in results.of_stage(env, WRITERS[name]):
            if name not in result.outputs:
                continue
            with contextlib.suppress(MoelineError):  # that version was removed by an earlier request
                rows = delta.dataset(env, result.table(name), where_in=[result.run_key]).to_table()
                if (kept := without(rows, request.doc_ids, items)) is not None:
                    written.append(str(_publish(env, name, result, kept, request, items)))
    return written


def without(rows: Any, doc_ids: Sequence[str], items: set[tuple[str, str]]) -> Any:
    """The rows without what was made of the documents, or None where there is nothing of it."""
    import pyarrow as pa

    named = _naming(rows, doc_ids)
    if items and set(_ITEM) <= set(rows.column_names):
        keys = zip(*(rows[c].to_pylist() for c in _ITEM), strict=True)
        named |= {place for place, key in enumerate(keys) if key in items}
    groups = _groups_naming(rows, {item_id for _, item_id in items}) if "item_ids" in rows.column_names else set()
    if not named and not groups:
        return None
    if "item_ids" in rows.column_names:  # a group of failures stays; what it says of the document does not
        cleared = [_cleared(row, doc_ids, items) if at in named | groups else row for at, row in enumerate(rows.to_pylist())]
        return pa.Table.from_pylist(cleared, schema=rows.schema)
    return rows.take(pa.array([place for place in range(rows.num_rows) if place not in named], pa.int64()))


def _groups_naming(rows: Any, item_ids: set[str]) -> set[int]:
    return {place for place, ids in enumerate(rows["item_ids"].to_pylist()) if item_ids & set(ids)}


def _cleared(row: dict[str, Any], doc_ids: Sequence[str], items: set[tuple[str, str]]) -> dict[str, Any]:
    gone = {item_id for _, item_id in items}
    ids = [item_id for item_id in row["item_ids"] if item_id not in gone and not any(doc_id in item_id for doc_id in doc_ids)]
    nearest = [document for document in json.loads(row["nearest_documents"]) if document.get("doc_id") not in doc_ids]
    return {**row, "item_ids": ids, "nearest_documents": json.dumps(nearest), "words": []}  # its words may be the document's


def _publish(env: Environment, name: str, result: StageResult, kept: Any, request: Request, items: set[tuple[str, str]]) -> TableVersion:
    import pyarrow.parquet as pq

    newest = delta.latest(env, name) or result.table(name)
    if without(delta.dataset(env, newest, where_in=[result.run_key]).to_table(), request.doc_ids, items) is not None:
        folder = env.warehouse / "_staging" / f"forget-{request.name}" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        pq.write_table(kept.drop_columns([TABLES[name].partition]), folder / "part-0.parquet", compression="zstd", row_group_size=2000)
        told = {"run_key": result.run_key, "stage": "forget"}
        newest = delta.publish(env, name, folder, partition_value=result.run_key, metadata=told)
        shutil.rmtree(folder.parent, ignore_errors=True)
    _renamed(env, name, result, newest)
    return newest


def _renamed(env: Environment, name: str, owner: StageResult, newest: TableVersion) -> None:
    """Let every recorded result that names the rows' old version name the new one; the result that wrote them last, so that a kill is noticed."""
    old = owner.outputs[name]
    for stage in set(WRITERS.values()):
        for reader in results.of_stage(env, stage):
            if reader.inputs.get(name) == old:
                results.record(env, replace(reader, inputs={**reader.inputs, name: str(newest)}))
    current = results.find(env, owner.stage, owner.run_key) or owner
    results.record(env, replace(current, outputs={**current.outputs, name: str(newest)}))


def changed_items(env: Environment, request: Request) -> set[tuple[str, str]]:
    """(benchmark, item_id) of own-data items of the documents' days that are gone, or read otherwise, since: a held-out document also lends
    wrong answers to the items of other documents."""
    import pyarrow.parquet as pq

    root, kept = table_store.root(env, "benchmark_items"), kept_files(env, "benchmark_items", request)
    days = sorted({day for doc_id, days in request.places.items() for day in days if is_held_out(doc_id)})
    changed: set[tuple[str, str]] = set()
    for day in days:
        now, before = set(), set()
        for file in (root / f"interval={day}").glob("*.parquet"):
            with file.open("rb") as content:
                rows = pq.ParquetFile(content).read(columns=[*_ITEM, "item"]).to_pylist()
            (now if file in kept else before).update((r["benchmark"], r["item_id"], r["item"]) for r in rows)
        changed |= {(benchmark, item_id) for benchmark, item_id, _ in before - now}
    return changed


# -- files ------------------------------------------------------------------------------------------------------------------


def files_of(env: Environment, version: TableVersion, day: str | None = None) -> set[Path]:
    """Files of a table version (and of one value of its partition), whether or not they are still there."""
    table = delta.open_table(env, version.name, version.version)
    pruned = None if day is None else [(TABLES[version.name].partition, "in", [day])]
    return set() if table is None else {table_store.path(env, uri) for uri in table.file_uris(file_pruning_predicate=pruned)}


def kept_files(env: Environment, name: str, request: Request) -> set[Path]:
    """Files of a table that must stay: of its newest version, and of the documents' days as results without them name them."""
    newest = delta.latest(env, name)
    kept = set() if newest is None else files_of(env, newest)
    if name in WRITERS and TABLES[name].partition == "interval":
        for result in results.of_stage(env, WRITERS[name]):
            if result.interval in request.days and name in result.outputs and is_without_forgotten(env, result):
                kept |= files_of(env, result.table(name), result.interval)
    return kept


def superseded(env: Environment, request: Request) -> list[Path]:
    """Files to remove: of older versions and refused or abandoned attempts that hold one of the documents."""
    found = []
    for name in TABLES:
        kept = kept_files(env, name, request)
        for file in _parquet(env, name):
            nameless = name in _NAMELESS and file.parent.name.removeprefix("interval=") in request.days
            if file not in kept and (nameless or mentions(file, request.doc_ids)):
                found.append(file)
    refused = {file.parents[1] for file in (env.warehouse / "_refused").glob("*/*/*/*.parquet") if mentions(file, request.doc_ids)}
    return [*found, *(file for attempt in sorted(refused) for file in sorted(attempt.rglob("*.parquet")))]


def _parquet(env: Environment, name: str) -> list[Path]:
    found = table_store.files(table_store.root(env, name))
    return [file.path for file in found if file.name.endswith(".parquet") and not file.name.startswith(f"{table_files.LOG}/")]


def unreadable(env: Environment, doomed: Iterable[Path]) -> list[dict[str, Any]]:
    """What can no longer be rebuilt once ``doomed`` are gone: table versions of recorded results, and training sets."""
    gone, found = set(doomed), []
    held = {name for name in TABLES if any(file.is_relative_to(table_store.root(env, name)) for file in gone)}
    for name in sorted(held & set(WRITERS)):
        for result in results.of_stage(env, WRITERS[name]):
            partition = result.interval or result.run_key
            if name in result.outputs and gone & files_of(env, result.table(name), partition):
                found.append({"what": f"{result.table(name)} of {partition}", "stage": result.stage, "run_key": result.run_key, "recipe": result.recipe})
    for stage in ("train", "forecast") if "sequences" in held else ():
        for result in results.of_stage(env, stage):
            read = days_read(env, result.inputs["sequences"]) if "sequences" in result.inputs else {}
            if days := [day for day, version in sorted(read.items()) if gone & files_of(env, version, day)]:
                what = f"training set of {stage} {result.run_key} ({', '.join(days)})"
                found.append({"what": what, "stage": stage, "run_key": result.run_key, "recipe": result.recipe})
    return found


def remove(env: Environment, files: Iterable[Path]) -> int:
    """Remove files, and the working folders that dead attempts left; returns how many files."""
    removed = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
            removed += 1
    for folder in (env.warehouse / "_staging").glob("*"):
        with locks.not_in_use(locks.file_of(env, attempt_lock(folder.name))) as abandoned:
            if abandoned:
                shutil.rmtree(folder, ignore_errors=True)
    return removed


def running_attempts(env: Environment) -> list[dict[str, Any]]:
    """Attempts whose process lives: their working folders may hold what they read before."""
    ledger.reconcile(env)
    found = []
    for file in sorted((env.home / "attempts").glob("*.json")):
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            found.append(json.loads(file.read_text()))
    return found


# -- what is left -----------------------------------------------------------------------------------------------------------


def left(env: Environment, doc_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Every place that still names one of the documents: ``where``, ``file`` (under the home) and ``rows``. Reads every file of every table."""
    return list(_left(env, doc_ids))


def _left(env: Environment, doc_ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    def place(where: str, file: Path, rows: int | None) -> dict[str, Any]:
        return {"where": where, "file": os.path.relpath(file, env.home) if isinstance(file, Path) else str(file), "rows": rows}

    for name in TABLES:
        newest = delta.latest(env, name)
        live = set() if newest is None else files_of(env, newest)
        for file in _parquet(env, name):
            if rows := mentions(file, doc_ids):
                yield place(f"{newest}" if file in live else f"older versions of {name}", file, rows)
    for folder in ("_refused", "_staging"):
        for file in sorted((env.warehouse / folder).rglob("*.parquet")):
            if rows := mentions(file, doc_ids):
                yield place("refused rows" if folder == "_refused" else "a working folder", file, rows)
    wanted = [doc_id.encode() for doc_id in doc_ids]
    for root in (env.warehouse, env.artifacts):
        for file in sorted(root.rglob("*")):
            if file.suffix in _SEARCHED and "_forgotten" not in file.parts and file.is_file() and _holds(file, wanted):
                yield place("a file", file, None)


def _holds(file: Path, wanted: Sequence[bytes]) -> bool:
    with contextlib.suppress(FileNotFoundError), open(file, "rb") as handle:
        return any(doc_id in line for line in handle for doc_id in wanted)
    return False
