"""moeline restore FROM: a new home out of a backup, on this machine or another, under any path.

It is built beside the home's place and renamed when every file has the sha256 its manifest gives, the databases are back and every table has its version and
rows; a restore that fails or is killed leaves no home. Nothing that is there is ever overwritten.
Change here: how a home comes back, what in it names absolute paths. Not here: what is in a backup (jobs/backup.py), what is believed of one
(services/backup_folder.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from jobs.backup import BY_HAND, places, summary
from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import backup_folder, filled_store, table_files, unfinished_home
from jobs.services.backup_folder import Manifest, Progress, copied, in_words

FORGOTTEN = (
    "This home is of {created_at}: documents forgotten later are in it again, and it does not know of those requests. Repeat `moeline forget` for each of "
    "them before anything is trained (warehouse/_forgotten/*.json of a newer home or backup names them). Nothing is forgotten again by itself."
)
# MLflow's database of work done without the platform names its artifacts by file:// URIs. All else of a home names them by relative paths: the platform's
# MLflow serves artifacts under mlflow-artifacts:/, tables and results hold paths below artifacts/, and Delta's log names files below the table.
_URIS = {
    "experiments": ("artifact_location",), "runs": ("artifact_uri",), "model_versions": ("source", "storage_location"), "logged_models": ("artifact_location",),
}  # fmt: skip
DUMPS = ".databases"  # of a home that is being made
Echo = Callable[[str], None]


def restore(env: Environment, source: Path, *, echo: Echo = lambda line: None) -> dict[str, Any]:
    """Make the home of ``env`` (its tables, artifacts and landing zone too) from the backup ``source``; returns what ``moeline restore --json`` prints.

    Raises MoelineError, having made nothing, when one of these folders is not empty, the backup is not whole or not as written, or a table
    does not come back with the version and rows it was copied with.
    """
    began = time.monotonic()
    manifest = backup_folder.read(source)
    _refuse_if_in_use(env, manifest)
    size = sum(file.size for file in manifest.files.values())
    echo(f"Restoring {source} ({in_words(size)}, of {manifest.about.get('created_at')}) as {env.home}")
    with unfinished_home.beside(env, places(env)) as (unfinished, moves):
        refuse_if_full(env.home.parent, size)
        _copy(source, manifest, unfinished, Progress(size, echo))
        if (artifacts := dict(manifest.about.get("places") or {}).get("artifacts")) is not None:
            repoint(env, unfinished, artifacts)
        put_back_databases(unfinished, manifest.files, echo)
        _compare_tables(unfinished, manifest)
        filled_store.fill(env, unfinished.warehouse, echo)
        unfinished_home.finish(moves)
    filled_store.release(env)
    told = {"home": str(env.home), "seconds": round(time.monotonic() - began, 1), "forgotten_since": FORGOTTEN.format(created_at=manifest.about["created_at"])}
    return summary(source, manifest) | told


def _refuse_if_in_use(env: Environment, manifest: Manifest) -> None:
    unfinished_home.refuse_if_in_use(places(env), env.home, "A restore")
    filled_store.refuse_if_in_use(env, "A restore")
    _believed(manifest)
    held = {name.partition("/")[0] for name in manifest.files}
    if "landing" in held and not isinstance(env.landing, Path):
        raise MoelineError(
            f"The backup holds a landing zone; that of environment {env.name} is {env.landing}. Restore with --env local, or another environment."
        )
    if "databases" in held and env.services.get("postgres_url"):
        raise MoelineError(f"The backup holds databases, and environment {env.name} uses a server of its own (postgres_url). Restore with another environment.")


def _believed(manifest: Manifest) -> None:
    """Refuse a manifest that does not say what is needed, in the words it is told to a person."""
    about = manifest.about
    landing, tables = about.get("landing"), about.get("tables")
    whole = isinstance(tables, dict) and all(isinstance(t, dict) and all(type(t.get(key)) is int for key in ("version", "rows")) for t in tables.values())
    said = isinstance(landing, str) and landing.isprintable() and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", str(about.get("created_at")))
    if not whole or not said:
        raise MoelineError("The manifest of this backup does not say when it was made, or of which tables. Take another backup.")


def refuse_if_full(folder: Path, needed: int) -> None:
    """Raise MoelineError where ``needed`` bytes do not fit in ``folder``, which need not be there yet."""
    at = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(at).free
    if free < needed:
        raise MoelineError(f"It holds {in_words(needed)}; {in_words(free)} are free at {at}. Name a home on another disk.")


def _copy(source: Path, manifest: Manifest, unfinished: Environment, progress: Progress) -> None:
    """Copy every file; what was written is what was hashed, so nothing can change between the check and its use."""
    roots, problems = places(unfinished) | {"databases": unfinished.home / DUMPS}, []
    for name, file in manifest.files.items():
        root, _, inside = name.partition("/")
        target = roots[root] / inside
        found = copied(source / name, target, lambda n, name=name: progress.add(n, name))
        if (found.sha256, found.size) != (file.sha256, file.size):
            problems.append(f"{name!r}: its content is not what was written (sha256)")
        os.utime(target, ns=(file.mtime_ns, file.mtime_ns))  # of a journal: the attempt's last sign of life
    backup_folder.refuse(source, problems)


def repoint(env: Environment, unfinished: Environment, old: Any) -> None:
    """Let file:// URIs of the ``old`` home's artifacts name those of the new one."""
    file = unfinished.home / BY_HAND
    if not file.is_file() or not isinstance(old, str) or not old.startswith("/"):
        return
    before, after = (f"{path.as_uri()}/" for path in (Path(old), env.artifacts))
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA trusted_schema = OFF")
        for table, columns in _URIS.items():
            known = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
            for column in known.intersection(columns):
                where = f"WHERE substr({column} || '/', 1, ?) = ?"
                database.execute(f"UPDATE {table} SET {column} = ? || substr({column}, ?) {where}", (after, len(before) + 1, len(before), before))
        database.commit()


def put_back_databases(unfinished: Environment, files: Collection[str], echo: Echo) -> None:
    """Make the embedded PostgreSQL of a new home from the dumps among its ``files`` (names as in a backup), and remove those."""
    folder = unfinished.home / DUMPS
    dumps = {Path(name).stem: folder / Path(name).name for name in backup_folder.DATABASES if name in files}
    if dumps:
        from jobs.services.platform import database_copies

        echo(f"  putting back the databases {', '.join(dumps)}")
        database_copies.put_back(unfinished.home / "postgres", dumps)
        shutil.rmtree(folder)


def _compare_tables(unfinished: Environment, manifest: Manifest) -> None:
    tables, logs = manifest.about["tables"], _logs(manifest)
    problems = [f"table {name!r} has a log in the backup, or is in its manifest, and not both" for name in sorted(tables.keys() ^ logs.keys())]
    for name in sorted(tables.keys() & logs.keys()):
        said, root = tables[name], unfinished.warehouse / name
        found = table_files.newest(root)  # raises for names that leave the table's folder
        if found is None or {*found.log} != logs[name]:
            problems.append(f"table {name}: its log holds other files than commits and checkpoints")
            continue
        version, rows = table_files.rows(root)
        if (version, rows) != (said["version"], said["rows"]):
            problems.append(f"table {name}: version {version} with {rows:,} rows came back, version {said['version']} with {said['rows']:,} was copied")
    if problems:
        raise MoelineError("The tables are not what was copied:" + "".join(f"\n  {p}" for p in problems) + "\nNothing was restored. Take another backup.")


def _logs(manifest: Manifest) -> dict[str, set[str]]:
    """Files of every table's log, by table."""
    found: dict[str, set[str]] = {}
    for name in manifest.files:
        root, _, inside = name.partition("/")
        table, _, file = inside.partition("/")
        if root == "warehouse" and file.startswith(f"{table_files.LOG}/"):
            found.setdefault(table, set()).add(file)
    return found


def render(found: Mapping[str, Any]) -> str:
    """The outcome of a restore for a person."""
    rows = sum(table["rows"] for table in found["tables"].values())
    lines = [f"{found['home']}: restored in {found['seconds']:.0f} s from {found['folder']} of {found['created_at']}"]
    lines += [
        f"  {len(found['tables'])} tables with {rows:,} rows, {found['n_files']:,} files, {in_words(found['bytes'])}; every sha256 and row count is as it was"
    ]
    lines += [f"  landing zone: {found['landing']}"] if found["landing"] != "copied" else []
    lines += [f"  {found['forgotten_since']}", f"  Go on with: moeline up --home {found['home']}"]
    return "\n".join(lines) + "\n"
