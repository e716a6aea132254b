"""Databases on servers reached by URL: dumped, counted, and filled so that a kill never leaves one that looks whole.

A database is claimed before it is filled, by a schema that says for which home; what a killed attempt left in a claimed database is emptied by the next.
Passwords reach PostgreSQL's programs by their environment, never on a command line. Change here: how a database moves between servers. Not here: the
embedded server (database_copies.py), when and in which order (jobs/migrate.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.services.platform.database_copies import run_program

CLAIM = "moeline_migration"
_OLDEST = 17  # dumps of the embedded server set what earlier ones do not know
_FOREIGN = f"n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> '{CLAIM}'"


@dataclass(frozen=True)
class Database:
    """One database; ``words`` are libpq's (host, port, user, ...), without the password."""

    name: str
    words: tuple[tuple[str, str], ...]
    password: str = field(default="", repr=False)

    @property
    def dsn(self) -> str:
        from psycopg2.extensions import make_dsn

        return str(make_dsn(**dict(self.words), dbname=self.name))

    def __str__(self) -> str:
        words = dict(self.words)
        return f"{self.name} at {words.get('host') or 'the local socket'}:{words.get('port') or 5432}"


def at_socket(sockets: Path, name: str) -> Database:
    """A database of an embedded server."""
    return Database(name, (("host", str(sockets)), ("user", "postgres")))


def at_url(url: str, name: str) -> Database:
    """The database ``name`` of the server a SQLAlchemy URL means (``[services] postgres_url``). Raises MoelineError for what is no URL of PostgreSQL."""
    from sqlalchemy import exc
    from sqlalchemy.engine import make_url

    try:
        found = make_url(url)
        words = {**found.query, **found.translate_connect_args(username="user", database="dbname")}
    except (exc.ArgumentError, ValueError) as error:
        raise MoelineError(
            f"postgres_url of the environment file is no URL ({type(error).__name__}). Write postgresql+psycopg2://user:password@host:port/"
        ) from None
    if found.get_backend_name() != "postgresql" or any(not isinstance(value, (str, int)) for value in words.values()):
        raise MoelineError("postgres_url of the environment file is not the URL of one PostgreSQL server. Write postgresql+psycopg2://user:password@host:port/")
    password = str(words.pop("password", "") or "")
    words.pop("dbname", None)
    return Database(name, tuple(sorted((key, str(value)) for key, value in words.items())), password)


def dump(database: Database, to: Path) -> None:
    """Write a database as of one moment to ``to`` (0600). Raises MoelineError when it cannot be read."""
    to.parent.mkdir(parents=True, exist_ok=True)
    command = ["pg_dump", "--format=custom", "--no-owner", "--no-privileges", "--no-password", "--exclude-schema", CLAIM, "--file", str(to)]
    run_program([*command, "--dbname", database.dsn], f"copy the database {database}", {"PGPASSWORD": database.password})


def counts(database: Database) -> dict[str, int]:
    """Rows of every table, as of one moment."""
    from psycopg2 import sql

    with _connected(database) as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute(f"SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND {_FOREIGN}")
        found = {}
        for schema, table in sorted(cursor.fetchall()):
            cursor.execute(sql.SQL("SELECT count(*) FROM {}.{}").format(sql.Identifier(schema), sql.Identifier(table)))
            found[f"{schema}.{table}"] = int(cursor.fetchone()[0])
    return found


def check(database: Database, home: Path) -> None:
    """Raise MoelineError unless the database is there, new enough, and empty or claimed for ``home``. Changes nothing."""
    with _connected(database) as cursor:
        claimed = _claimed_for(cursor)
        if claimed not in (None, str(home)):
            raise MoelineError(f"The database {database} is being filled for {claimed}. Let that `moeline migrate` end, or run it again; or name another.")
        if cursor.connection.server_version < _OLDEST * 10_000:
            found = cursor.connection.server_version // 10_000
            raise MoelineError(f"The server of {database} is PostgreSQL {found}; dumps of ours need {_OLDEST} or later. Upgrade it, or name another.")
        if claimed is None and (held := _held(cursor)):
            raise MoelineError(f"The database {database} is not empty: it holds {', '.join(held[:3])}. Nothing was changed. Empty it, or name another.")


def fill(database: Database, file: Path, home: Path) -> None:
    """Put a dump into an empty database, or one that an earlier attempt for ``home`` filled. Raises MoelineError, leaving it empty and claimed."""
    check(database, home)
    with _connected(database) as cursor:
        if _claimed_for(cursor) is None:
            cursor.execute(f"CREATE SCHEMA {CLAIM}")
            cursor.execute(f"COMMENT ON SCHEMA {CLAIM} IS %s", (str(home),))
        elif _held(cursor):
            cursor.execute("DROP SCHEMA public CASCADE")  # all our tables are in it, and it was empty when it was claimed
            cursor.execute("CREATE SCHEMA public")
    command = ["pg_restore", "--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction", "--no-password", "--dbname", database.dsn, str(file)]
    run_program(command, f"fill the database {database}", {"PGPASSWORD": database.password})


def release(database: Database) -> None:
    """Take the claim away: the database is whole."""
    with _connected(database) as cursor:
        cursor.execute(f"DROP SCHEMA IF EXISTS {CLAIM}")


def _claimed_for(cursor: Any) -> str | None:
    cursor.execute("SELECT coalesce(obj_description(oid, 'pg_namespace'), '') FROM pg_namespace WHERE nspname = %s", (CLAIM,))
    found = cursor.fetchone()
    return None if found is None else str(found[0])


def _held(cursor: Any) -> list[str]:
    """Tables, types and functions somebody made."""
    kinds = (("pg_class", "relname", "relnamespace"), ("pg_type", "typname", "typnamespace"), ("pg_proc", "proname", "pronamespace"))
    held = []
    for catalog, name, where in kinds:
        cursor.execute(f"SELECT o.{name} FROM {catalog} o JOIN pg_namespace n ON n.oid = o.{where} WHERE {_FOREIGN} ORDER BY 1")
        held += [found for (found,) in cursor.fetchall()]
    return held


@contextlib.contextmanager
def _connected(database: Database) -> Iterator[Any]:
    """A cursor in a transaction that is committed at the end."""
    import psycopg2

    try:
        connection = psycopg2.connect(database.dsn, password=database.password or None, connect_timeout=20)
    except psycopg2.OperationalError as error:
        said = " ".join(str(error).split())[:300]
        raise MoelineError(
            f"The database {database} was asked for: {said}. Is the server running, postgres_url right? Databases are made by the server's owner: "
            f"CREATE DATABASE {database.name}."
        ) from None
    try:
        with connection, connection.cursor() as cursor:
            yield cursor
    except psycopg2.Error as error:
        raise MoelineError(f"The database {database} refused: {' '.join(str(error).split())[:300]}. Its user must own the database.") from None
    finally:
        connection.close()
