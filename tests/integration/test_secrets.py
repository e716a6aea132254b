"""After a whole job no secret stands anywhere but in the private files that are there for it: not in logs, results, tables, XComs or MLflow's records."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from whole_job import WholeJob

from expectations.tables import TABLES
from jobs.environment import Environment
from jobs.services import delta

pytestmark = pytest.mark.integration
OWN_FILES = (  # each 0600: the secrets themselves, and what must name one to start a service
    "airflow/keys/fernet", "airflow/keys/api", "airflow/keys/jwt", "airflow/passwords.json", "airflow/airflow.cfg", "mlflow/password", "ray/token",
    "spark/token", "spark/server.properties", "platform.json", "plan.json",
)  # fmt: skip
ENGINES = ("postgres/data/", "run/", "spark/local/")  # PostgreSQL's rows are read through it; Ray's session and Spark's blocks end with the platform
LANDED = ("documents", "clean_documents", "rejections", "unique_documents", "duplicates", "training_documents", "sequences", "quarantine")


def secrets_of(home: Path) -> dict[str, str]:
    found = {name: (home / name).read_text().strip() for name in OWN_FILES[:3]} | {
        "the owner's password": json.loads((home / "airflow/passwords.json").read_text())["admin"],
        **{name: (home / name).read_text().strip() for name in ("mlflow/password", "ray/token", "spark/token")},
    }
    for key in (home / "keys").glob("*"):
        if stat.S_IMODE(key.stat().st_mode) == 0o600 and "PRIVATE" in (text := key.read_text()):
            found[f"keys/{key.name}"] = text.split("\n")[1]
    return found


def rows_of(url: str, database: str) -> Iterator[tuple[str, str]]:
    """(table, row as text) of every table of a database of the platform's PostgreSQL."""
    import sqlalchemy as sa

    engine = sa.create_engine(sa.make_url(url).set(database=database))
    try:
        with engine.connect() as connection:
            for schema, table in connection.execute(
                sa.text("SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')")
            ):
                quoted = ".".join(engine.dialect.identifier_preparer.quote(part) for part in (schema, table))
                for (row,) in connection.execute(sa.text(f"SELECT t::text FROM {quoted} t")):
                    yield f"{database}.{table}", row
    finally:
        engine.dispose()


def texts(env: Environment) -> Iterator[tuple[str, str]]:
    for file in env.home.rglob("*"):
        name = file.relative_to(env.home).as_posix()
        if file.is_file() and name not in OWN_FILES and not name.startswith(ENGINES) and not name.startswith("keys/"):
            yield name, file.read_bytes().decode("latin-1")
    for table in sorted(set(TABLES) - set(LANDED)):  # Parquet is compressed; documents are other people's text
        if delta.latest(env, table) is not None:
            yield f"table {table}", json.dumps(delta.rows(env, table), default=str)
    for database in ("airflow", "mlflow"):
        yield from rows_of(env.platform["postgres_url"], database)


def test_no_secret_stands_anywhere_else(whole_job: WholeJob) -> None:
    home = whole_job.env.home
    secrets = secrets_of(home)
    assert len(secrets) >= 8 and min(map(len, secrets.values())) >= 24, {name: len(value) for name, value in secrets.items()}
    for name in OWN_FILES:
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600, name
    read: set[str] = set()
    for where, text in texts(whole_job.env):
        read.add(where.split("/")[0].partition(".")[0] if "/" in where else where)
        told = [name for name, value in secrets.items() if value in text]
        assert not told, f"{where} holds {told}"
    assert {"logs", "artifacts", "table costs", "airflow.xcom", "airflow.dag_run", "mlflow.runs"} <= read, sorted(read)
