"""moeline backup TO: a copy of a home from which another machine goes on, taken while the platform runs and stages write.

Nothing is stopped, so what is copied first is older than what is copied last. Therefore everything is copied before what it refers to: Airflow's
database (which tasks are done), recorded results, tables, MLflow's database, artifacts, landing files, keys. A copy then never names what it lacks; what
it holds too much (rows whose result is not recorded, a model version nobody recorded) is what a kill leaves as well, and the same run goes on from that.
Change here: what is copied, in which order. Not here: what a backup looks like (services/backup_folder.py), how it comes back (jobs/restore.py).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import backup_folder, locks, table_files, table_store
from jobs.services.backup_folder import Copies, Progress, Unfinished, in_words, regular_files

BY_HAND = "mlflow-by-hand.db"
_FIRST_OF_HOME = ("attempts", "uptime")  # an attempt's journal goes when its row is in the table of costs: journal first, so that nothing is free
_BEFORE_TABLES, _AFTER_TABLES = ("_results", "_forgotten"), ("_refused",)  # folders of the warehouse that are no tables
_ATTEMPTS = 5
_FORGET_SECONDS = 24 * 3600.0
_DATABASE_BYTES = 10_000_000  # what a dump is thought to take before it is made
Echo = Callable[[str], None]


def backup(env: Environment, to: Path, *, landing: bool = True, echo: Echo = lambda line: None) -> dict[str, Any]:
    """Write a new backup into the folder ``to`` and return what ``moeline backup --json`` prints; ``folder`` is where it lies.

    Raises MoelineError, leaving nothing behind, when ``to`` holds other things, the disk is too small, or a table cannot be read.
    """
    from jobs.services.platform.record import locked

    began, to = time.monotonic(), to.resolve()
    zone = env.landing if landing and isinstance(env.landing, Path) else None
    _refuse_place(env, to)
    echo(f"Copying {env.home} to {to}")
    # A document that is being forgotten leaves results, tables and files in several steps; a copy between them would bring half of it back.
    with locked(locks.file_of(env, "forget"), timeout_seconds=_FORGET_SECONDS, waiting=lambda: echo("Waiting for `moeline forget` or another backup to end.")):
        progress = Progress(expected_bytes(env, zone), echo)
        with Unfinished(to, progress) as unfinished:
            _refuse_if_full(unfinished.folder, progress.total)
            about = _about(env)
            about["tables"], about["databases"] = copy_all(env, unfinished, zone, lambda database: _dump(env, unfinished, database))
            about["landing"] = _of_landing(env, landing)
            final, manifest = unfinished.finish(about)
    seconds = time.monotonic() - began
    return summary(final, manifest) | {"seconds": round(seconds, 1)}


def summary(folder: Path, manifest: backup_folder.Manifest) -> dict[str, Any]:
    """What is told of a backup: everything its manifest says but the list of files."""
    size = sum(file.size for file in manifest.files.values())
    return {**manifest.about, "folder": str(folder), "n_files": len(manifest.files), "bytes": size, "manifest_sha256": manifest.sha256}


def verify(folder: Path, *, echo: Echo = lambda line: None) -> dict[str, Any]:
    """Read every file of a backup and compare it with the manifest; raises MoelineError naming what is not as written."""
    began = time.monotonic()
    manifest = backup_folder.read(folder)
    backup_folder.verify(folder, manifest, Progress(sum(file.size for file in manifest.files.values()), echo))
    return summary(folder, manifest) | {"verified": True, "seconds": round(time.monotonic() - began, 1)}


def copy_all(
    env: Environment, copies: Copies, zone: Path | None, dump: Callable[[str], list[str]], *, tables_stay: bool = False
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """Copy everything, in the order the module's docstring explains; returns (tables by name, databases).

    ``dump`` takes a copy of a database of that name, where there is one, and returns its name in a list. ``tables_stay``: in a store, for both homes.
    """
    databases = dump("airflow")
    for name in _FIRST_OF_HOME:
        _copy_folder(copies, f"home/{name}", env.home / name, lambda entry: not entry.name.endswith(".json"))
    for name in _BEFORE_TABLES:
        _copy_folder(copies, f"warehouse/{name}", env.warehouse / name)
    tables = {}
    for root in [] if tables_stay else table_store.roots(env):
        if (found := copy_table(copies, root)) is not None:
            tables[root.name] = found
    for name in _AFTER_TABLES:
        _copy_folder(copies, f"warehouse/{name}", env.warehouse / name)
    databases += dump("mlflow")
    _copy_by_hand(env, copies)
    _copy_folder(copies, "artifacts", env.artifacts)
    if zone is not None:
        _copy_folder(copies, "landing", zone, _is_hidden)  # such a file is still being written, and not landed yet
    for name in backup_folder.HOME_FOLDERS:
        if name not in _FIRST_OF_HOME:
            _copy_folder(copies, f"home/{name}", env.home / name, _is_hidden)
    for name in backup_folder.HOME_FILES:
        if name != BY_HAND:
            copies.copy(f"home/{name}", env.home / name)
    return tables, databases


def _dump(env: Environment, unfinished: Unfinished, database: str) -> list[str]:
    """Dump a database of the embedded PostgreSQL, where there is one; returns its name in a list."""
    if env.services.get("postgres_url"):
        return []
    from jobs.services.platform import database_copies

    with database_copies.reachable(env) as sockets:
        if sockets is None:
            return []
        name = f"databases/{database}.dump"
        database_copies.dump(sockets, database, unfinished.place(name))
        unfinished.take(name)
    return [database]


def _copy_by_hand(env: Environment, copies: Copies) -> None:
    """MLflow's database of stages that were run without the platform, as of one moment."""
    source, name = env.home / BY_HAND, f"home/{BY_HAND}"
    if source.is_file():
        (made := copies.place(name)).parent.mkdir(exist_ok=True)
        with contextlib.closing(sqlite3.connect(source)) as reading, contextlib.closing(sqlite3.connect(made)) as writing:
            reading.backup(writing)
        copies.take(name)


def copy_table(copies: Copies, root: Path) -> dict[str, int] | None:
    """Copy a table as of its newest version with all older ones; {version, rows, removed} or None where it was never written.

    A file the version reads may vanish before its turn comes (a vacuum, after a newer commit): then the newer version is copied. ``removed`` counts
    files of older versions that were gone before (forgotten documents): those versions cannot be read here either. Raises MoelineError
    for a table whose own version lacks a file.
    """
    before: tuple[int, list[str]] | None = None
    for _ in range(_ATTEMPTS):
        found = table_files.newest(root)
        if found is None:
            return None
        gone = [name for name in sorted(found.live | found.older) if not _copied(copies, root, name)]
        lacking = sorted(found.live.intersection(gone)) or [name for name in found.log if not _copied(copies, root, name)]
        if not lacking:
            version, rows = table_files.rows(copies.place(f"warehouse/{root.name}"))
            return {"version": version, "rows": rows, "removed": len(gone)}
        if before == (found.version, lacking):
            break  # no newer version came, so nobody made these files needless
        before = (found.version, lacking)
    raise MoelineError(
        f"{root.name}@{found.version} reads {lacking[0]}, which is not in {root}, so no copy of this table can be whole. Put that file back from an earlier "
        "backup, or restore that backup into another home."
    )


def _copied(copies: Copies, root: Path, name: str) -> bool:
    full = f"warehouse/{root.name}/{name}"
    return full in copies.files or copies.copy(full, root / name)


def _is_passing(entry: os.DirEntry[str]) -> bool:
    """Files and folders that are there only while something is being written, or locked. Others may start with a dot: they belong to signed folders."""
    name = entry.name
    return name.startswith(".unfinished-") or (name.startswith(".") and name.endswith(".tmp")) or name == "writer.lock"


def _is_hidden(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".") and entry.is_file()


def _copy_folder(copies: Copies, name: str, root: Path, leave_out: Callable[[os.DirEntry[str]], bool] = _is_passing) -> None:
    """Copy a folder's files, and once more those that appeared while something vanished: a training removes a checkpoint when it has a newer one."""
    for _ in range(_ATTEMPTS):
        vanished = set()
        for inside, file in regular_files(root, leave_out):
            full = f"{name}/{inside}"
            if full not in copies.files and not copies.copy(full, file):
                vanished.add(full.rpartition("/")[0])
        for folder in vanished:
            if name.startswith("artifacts") and not (root / folder.removeprefix(name).lstrip("/")).is_dir():
                copies.drop(folder)  # half of a folder that was removed as a whole is good for nothing
        if not vanished:
            return


# -- before and after -------------------------------------------------------------------------------------------------------


def places(env: Environment) -> dict[str, Path]:
    """The folders of a home that a backup holds parts of, by the name they have in it; the landing zone only where it is a folder."""
    found = {"home": env.home, "warehouse": env.warehouse, "artifacts": env.artifacts}
    return found | ({"landing": env.landing} if isinstance(env.landing, Path) else {})


def _refuse_place(env: Environment, to: Path) -> None:
    if not env.home.is_dir():
        raise MoelineError(f"A backup of {env.home} was asked for, which is no folder. Name the home with --home or MOELINE_HOME.")
    for place in places(env).values():
        if to.is_relative_to(place):
            raise MoelineError(f"The backup would lie in {to}, inside {place}, and go when that goes. Name a folder elsewhere, best on another disk.")


def expected_bytes(env: Environment, zone: Path | None) -> int:
    """What ``copy_all`` copies, about."""
    roots = [env.warehouse, env.artifacts, *([zone] if zone else [])]
    in_store = 0 if env.tables is None else sum(file.size for root in table_store.roots(env) for file in table_store.files(root))
    return _DATABASE_BYTES + in_store + sum(_size(file) for root in roots for _, file in regular_files(root, lambda entry: entry.name == "_staging"))


def _size(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def _refuse_if_full(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MoelineError(
            f"The backup takes about {in_words(needed)}; {in_words(free)} are free at {folder.parent}. Remove earlier backups, or name another disk."
        )


def _about(env: Environment) -> dict[str, Any]:
    from importlib import metadata

    from jobs.run import code_revision

    version = "unknown"
    with contextlib.suppress(metadata.PackageNotFoundError):
        version = metadata.version("moeline")
    return {
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "moeline": version, "code_revision": code_revision(), "environment": env.name,
        "places": {name: os.fspath(path) for name, path in places(env).items()},
    }  # fmt: skip


def _of_landing(env: Environment, asked: bool) -> str:
    if not isinstance(env.landing, Path):
        return f"not copied: it is {env.landing}"
    return "copied" if asked else "not copied: --no-landing"
