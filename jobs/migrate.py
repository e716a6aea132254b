"""moeline migrate --to ENV --home NEW: a home goes on under another environment file: other folders, a PostgreSQL of its own, another landing zone.

The platform rests meanwhile, so nothing differs between the first file copied and the last. What is copied, and how it becomes a home, is what backup and
restore do, without the copy in between. Every file is read again where it now lies and compared by sha256; the rows of every version of every table, and of
every table of the databases, are counted on both sides. The source is only read. Killed, it leaves no home; run again, it begins anew.
Change here: what moves and what is only named anew, what is compared. Not here: what is copied in which order (jobs/backup.py), how a home is made in one
step (services/unfinished_home.py), databases (services/platform/database_moves.py).
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs import backup, restore
from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import backup_folder, filled_store, ledger, locks, table_files, table_store, unfinished_home
from jobs.services.backup_folder import Copies, Progress, in_words
from jobs.services.results import write_whole
from jobs.terminal import printed

RECEIPT = "migration.json"  # in the new home: where it came from, and what was compared
_LOCK_SECONDS = 60.0
Echo = Callable[[str], None]


def migrate(source: Environment, target: Environment, *, landing: bool = True, asked: str = "", echo: Echo = lambda line: None) -> dict[str, Any]:
    """Make the home of ``target`` out of that of ``source``; returns what ``moeline migrate --json`` prints. ``asked``: how the environment was named.

    Raises MoelineError, having made nothing, when the source is in use, a place or database of the target is not empty, or anything is not the same
    afterwards. The same again, once it is done, tells so and changes nothing.
    """
    from jobs.services.platform.record import locked

    began, urls = time.monotonic(), _database_urls(source, target)
    places = {name: place for name, place in backup.places(target).items() if name != "landing" or _lands_in(source, target, landing)}
    if (done := _done_before(source, target, urls)) is not None:
        return done
    _refuse(source, target)
    waiting = {"timeout_seconds": _LOCK_SECONDS, "waiting": lambda: echo("Waiting for the platform, `moeline forget` or a backup to end.")}
    with locked(source.home / "up.lock", **waiting), locked(locks.file_of(source, "forget"), **waiting), contextlib.ExitStack() as stack:
        if (done := _done_before(source, target, urls)) is not None:
            return done  # by another one that had the locks
        _refuse_if_running(source)
        unfinished_home.refuse_if_in_use(places, target.home, "A migration")
        if not _shares_tables(source, target):
            filled_store.refuse_if_in_use(target, "A migration")
        for database, url in urls.items():
            _moves().check(_moves().at_url(url, database), target.home)
        unfinished, moves = stack.enter_context(unfinished_home.beside(target, places))
        size = backup.expected_bytes(source, source.landing if "landing" in places and isinstance(source.landing, Path) else None)
        restore.refuse_if_full(target.home.parent, size)
        echo(f"Migrating {source.home} (about {in_words(size)}) to {target.home}, environment {target.name}")
        compared = _build(source, target, unfinished, places, urls, echo)
        receipt = {
            "from": str(source.home), "home": str(target.home), "environment": target.name, "asked": asked, "landing": _of_landing(source, target, places),
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **compared,
        }  # fmt: skip
        write_whole(unfinished.home / RECEIPT, json.dumps(receipt, indent=1).encode())
        unfinished_home.finish(moves)
    _release(urls)
    filled_store.release(target)
    return receipt | {"seconds": round(time.monotonic() - began, 1), "already": False}


# -- before -----------------------------------------------------------------------------------------------------------------


def _moves() -> Any:
    from jobs.services.platform import database_moves

    return database_moves


def _database_urls(source: Environment, target: Environment) -> dict[str, str]:
    """URL of every database that has to be filled on a server of the target's own; none where both use the same server."""
    from jobs.services.platform import postgres
    from jobs.services.platform.services import with_database

    url = target.services.get("postgres_url")
    if not url or url == source.services.get("postgres_url"):
        return {}
    return {database: with_database(url, database) for database in postgres.DATABASES}


def _done_before(source: Environment, target: Environment, urls: Mapping[str, str]) -> dict[str, Any] | None:
    """What was told when this very migration ended; a kill after that may have left the claims on the databases."""
    try:
        receipt: dict[str, Any] = json.loads((target.home / RECEIPT).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if (target.home / unfinished_home.MARK).exists() or (receipt.get("from"), receipt.get("environment")) != (str(source.home), target.name):
        return None
    unfinished_home.tidy(backup.places(target).values())
    _release(urls)
    filled_store.release(target)
    return receipt | {"seconds": 0.0, "already": True}


def _release(urls: Mapping[str, str]) -> None:
    for database, url in urls.items():
        _moves().release(_moves().at_url(url, database))


def _refuse(source: Environment, target: Environment) -> None:
    if not source.home.is_dir():
        raise MoelineError(f"A migration of {source.home} was asked for, which is no folder. Name the home with --from or MOELINE_HOME.")
    unfinished_home.refuse(source)
    for name, new in backup.places(target).items():
        for old in backup.places(source).values():
            shared = name == "landing" and new == source.landing
            if not shared and (new.is_relative_to(old) or old.is_relative_to(new)):
                raise MoelineError(
                    f"The new {name} would be {new}, and {old} belongs to the old home. Name another folder with --home, or in the environment file."
                )
    old_tables, new_tables = f"{source.tables}/", f"{target.tables}/"
    if old_tables != new_tables and (old_tables.startswith(new_tables) or new_tables.startswith(old_tables)):
        raise MoelineError(
            f"The new tables would be in {target.tables}, and {source.tables} belongs to the old home. Name another place in the environment file."
        )
    before, after = (env.services.get("mlflow_uri") for env in (source, target))
    if before != after:
        raise MoelineError(
            f"The registry is {before or 'in the home'}, and environment {target.name} names {after or 'none elsewhere'} (mlflow_uri). What another "
            "MLflow server holds cannot be copied as files. Give both environments the same mlflow_uri, or neither."
        )
    if source.services.get("postgres_url") and not target.services.get("postgres_url"):
        raise MoelineError(
            f"The databases are on a server (postgres_url), and environment {target.name} names none. They move from a home to a server or between servers: "
            "name one in the environment file."
        )


def _refuse_if_running(source: Environment) -> None:
    from jobs.services.platform.record import is_same_process, read_record

    if is_same_process(read_record(source.home).get("supervisor")):
        raise MoelineError(f"The platform of {source.home} is running, and what it writes now would stay behind. Stop it: moeline down --home {source.home}")
    for attempt, _, alive in ledger.open_attempts(source):
        if alive:
            raise MoelineError(f"Stage {attempt.stage} is running in {source.home} (process {attempt.pid}). Let it end, then try again.")


def _lands_in(source: Environment, target: Environment, asked: bool) -> bool:
    """Whether landing files are copied: from a folder into another folder."""
    return asked and isinstance(source.landing, Path) and isinstance(target.landing, Path) and source.landing != target.landing


def _of_landing(source: Environment, target: Environment, places: Mapping[str, Path]) -> str:
    if "landing" in places:
        return "copied"
    if source.landing == target.landing:
        return f"not copied: both read {target.landing}"
    return f"not copied: the new home reads {target.landing}; put the files of {source.landing} there"


# -- the copy, and what is compared -----------------------------------------------------------------------------------------


def _build(
    source: Environment, target: Environment, unfinished: Environment, places: Mapping[str, Path], urls: Mapping[str, str], echo: Echo
) -> dict[str, Any]:
    zone = source.landing if "landing" in places and isinstance(source.landing, Path) else None
    roots = {name: place for name, place in backup.places(unfinished).items() if name in places} | {"databases": unfinished.home / restore.DUMPS}
    copies = Copies(roots, Progress(backup.expected_bytes(source, zone), echo))
    with _source_databases(source, target) as given:
        held: dict[str, dict[str, int]] = {}

        def dump(database: str) -> list[str]:
            if database not in given:
                return []
            name = f"databases/{database}.dump"
            _moves().dump(given[database], copies.place(name))
            held[database] = _moves().counts(given[database])
            copies.take(name)
            return [database]

        backup.copy_all(source, copies, zone, dump, tables_stay=_shares_tables(source, target))
    echo("  comparing every file and every version of every table")
    _compare_files(copies, echo)
    if _shares_tables(source, target):
        tables = {root.name: _told(versions) for root in table_store.roots(source) if (versions := table_files.rows_by_version(root))}
    else:
        tables = _compare_tables(source, unfinished)
        filled_store.fill(target, unfinished.warehouse, echo)
    restore.repoint(target, unfinished, str(source.artifacts))
    _put_databases(target, unfinished, copies, urls, held, echo)
    files = {name: file for name, file in copies.files.items() if not name.startswith("databases/")}
    told = {database: {"tables": len(rows), "rows": sum(rows.values())} for database, rows in held.items()}
    return {"tables": tables, "databases": told, "n_files": len(files), "bytes": sum(file.size for file in files.values())}


@contextlib.contextmanager
def _source_databases(source: Environment, target: Environment) -> Iterator[dict[str, Any]]:
    """The databases that have to move, by name."""
    from jobs.services.platform import database_copies, postgres
    from jobs.services.platform.services import with_database

    url = source.services.get("postgres_url")
    if url:
        moving = url != target.services.get("postgres_url")
        yield {name: _moves().at_url(with_database(url, name), name) for name in postgres.DATABASES} if moving else {}
        return
    with database_copies.at_rest(source.home) as sockets:
        yield {} if sockets is None else {name: _moves().at_socket(sockets, name) for name in postgres.DATABASES}


def _compare_files(copies: Copies, echo: Echo) -> None:
    progress = Progress(sum(file.size for file in copies.files.values()), echo)
    if wrong := backup_folder.altered(copies.files, copies.place, progress):
        raise MoelineError(f"{len(wrong)} files are not what was copied (sha256): {', '.join(wrong[:5])}. Is the disk sound? Nothing was made; try again.")


def _compare_tables(source: Environment, unfinished: Environment) -> dict[str, Any]:
    """Rows of every version on both sides; raises MoelineError where they differ."""
    found = {}
    for root in table_store.roots(source):
        before, after = table_files.rows_by_version(root), table_files.rows_by_version(unfinished.warehouse / root.name)
        if before != after:
            wrong = sorted(version for version in before.keys() | after.keys() if before.get(version, -1) != after.get(version, -1))
            raise MoelineError(
                f"{root.name}@{wrong[0]} had {before.get(wrong[0])} rows and came over with {after.get(wrong[0])}. Nothing was made. Does anybody write to "
                f"{root.parent}?"
            )
        if before:
            table_files.rows(unfinished.warehouse / root.name)  # raises for one that is not whole
            found[root.name] = _told(after)
    return found


def _told(by_version: Mapping[int, int | None]) -> dict[str, int]:
    version = max(by_version)
    return {"version": version, "rows": by_version[version] or 0, "versions": len(by_version), "removed": sum(count is None for count in by_version.values())}


def _shares_tables(source: Environment, target: Environment) -> bool:
    """Whether both homes name the same store: the tables stay where they are."""
    return target.tables is not None and source.tables == target.tables


def _put_databases(
    target: Environment, unfinished: Environment, copies: Copies, urls: Mapping[str, str], held: Mapping[str, Mapping[str, int]], echo: Echo
) -> None:
    """Fill the target's databases from the dumps, and count them."""
    from jobs.services.platform import database_copies

    if not held:
        return
    if not urls:
        restore.put_back_databases(unfinished, copies.files, echo)
    for database in urls.keys() & held.keys():
        to = _moves().at_url(urls[database], database)
        echo(f"  filling the database {to}")
        _moves().fill(to, copies.place(f"databases/{database}.dump"), target.home)
        _compare_rows(database, held[database], _moves().counts(to))
    if urls:
        shutil.rmtree(unfinished.home / restore.DUMPS)
        return
    with database_copies.at_rest(unfinished.home) as sockets:
        for database, rows in held.items():
            if sockets is not None:
                _compare_rows(database, rows, _moves().counts(_moves().at_socket(sockets, database)))


def _compare_rows(database: str, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    if wrong := sorted(table for table in before.keys() | after.keys() if before.get(table) != after.get(table)):
        table = wrong[0]
        raise MoelineError(f"The database {database} came over with {after.get(table)} rows in {table}, not {before.get(table)}. Nothing was made; try again.")


def render(found: Mapping[str, Any]) -> str:
    """The outcome for a person, and what to do next."""
    rows = sum(table["rows"] for table in found["tables"].values())
    versions = sum(table["versions"] for table in found["tables"].values())
    databases = ", ".join(f"{name} ({told['rows']:,} rows in {told['tables']} tables)" for name, told in found["databases"].items())
    head = f"migrated before ({found['at']}); nothing was done" if found["already"] else f"migrated in {found['seconds']:.0f} s from {found['from']}"
    variables = f"MOELINE_ENV={shlex.quote(found['asked'] or found['environment'])} MOELINE_HOME={shlex.quote(found['home'])}"
    lines = [
        f"{found['home']}: {head}",
        f"  {len(found['tables'])} tables with {rows:,} rows; the rows of all their {versions:,} versions were counted on both sides",
        f"  {found['n_files']:,} files, {in_words(found['bytes'])}; every sha256 is as it was",
        f"  databases: {databases or 'none moved'}; landing zone: {found['landing']}",
        f"  {found['from']} is as it was. Start one of the two only: both hold the same runs. Remove the old one when the new one has shown that it works.",
        f"  Go on with: {variables} moeline up",
    ]
    return printed(lines)
