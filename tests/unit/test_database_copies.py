"""Dumps of a real PostgreSQL cluster, put back into another; a dump that could run something later is refused."""

from __future__ import annotations

import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services.platform import database_copies, postgres

MLFLOW_TRIGGER = f"""CREATE FUNCTION f() RETURNS TRIGGER AS $$ {database_copies._OF_MLFLOW} $$ LANGUAGE plpgsql;
    CREATE TRIGGER t BEFORE UPDATE ON kept FOR EACH ROW EXECUTE FUNCTION f()"""
HOSTILE = {
    "function": "CREATE FUNCTION g() RETURNS int AS $$ BEGIN COPY kept TO PROGRAM 'true'; RETURN 1; END; $$ LANGUAGE plpgsql",
    "trigger": "CREATE TRIGGER u BEFORE UPDATE ON kept FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "a call of lo_export": "ALTER TABLE kept ALTER COLUMN id SET DEFAULT lo_export(1, 'x')",
    "a call of pg_read_file": "ALTER TABLE kept ADD CHECK (pg_read_file('x') IS NULL) NOT VALID",
    "a call of pg_sleep": "CREATE DOMAIN d AS text CHECK (pg_sleep(1) IS NOT NULL)",
    "pg_rewrite": "CREATE VIEW v AS SELECT pg_read_file('x')",
    "pg_operator": "CREATE OPERATOR === (LEFTARG = oid, RIGHTARG = text, FUNCTION = lo_export)",
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    """The folder ``postgres`` of a home: an initialised cluster with a small database airflow, at rest. Not pytest's folder: as root, PostgreSQL steps down."""
    home = Path(tempfile.mkdtemp(prefix="moeline-"))
    try:
        database_copies.put_back(home / "postgres", {})
        with database_copies._server(home / "postgres") as sockets:
            database_copies._execute(
                sockets, "airflow", "CREATE TABLE kept (id serial PRIMARY KEY, text varchar DEFAULT 'it''s (so)' CHECK (length(text) > 0))"
            )
            database_copies._execute(sockets, "airflow", "INSERT INTO kept (text) VALUES ('é'), (DEFAULT)")
            database_copies._execute(sockets, "airflow", "CREATE INDEX i ON kept (lower(text)) WHERE text <> ''")
            database_copies._execute(sockets, "airflow", MLFLOW_TRIGGER)
        yield home / "postgres"
    finally:
        shutil.rmtree(home)


def test_a_database_comes_back_whole_and_belongs_to_the_owner_of_all(cluster, tmp_path):
    env = Environment.load("local", cluster.parent)
    with database_copies.reachable(env) as sockets:
        database_copies.dump(sockets, "airflow", tmp_path / "airflow.dump")
    assert stat.S_IMODE((tmp_path / "airflow.dump").stat().st_mode) == 0o600
    other = cluster.parent / "other"
    database_copies.put_back(other, {"airflow": tmp_path / "airflow.dump"})
    with database_copies._server(other) as sockets:
        assert database_copies._execute(sockets, "airflow", "SELECT id, text FROM kept ORDER BY id") == [(1, "é"), (2, "it's (so)")]
        assert database_copies._execute(sockets, "airflow", "INSERT INTO kept DEFAULT VALUES RETURNING id") == [(3,)], "sequences go on"
        assert database_copies._execute(sockets, "airflow", "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'") == [("postgres",)]
        assert database_copies._execute(sockets, "airflow", "SELECT count(*) FROM pg_roles WHERE rolname = 'restoring'") == [(0,)]
    assert postgres.is_initialised(other)


def test_what_could_run_later_is_found(cluster):
    with database_copies._server(cluster) as sockets:
        assert database_copies._strange(sockets, "airflow") == []
        for found, statement in HOSTILE.items():
            database_copies._execute(sockets, "postgres", "CREATE DATABASE hostile TEMPLATE airflow")
            database_copies._execute(sockets, "hostile", statement)
            assert any(found in one for one in database_copies._strange(sockets, "hostile")), (found, database_copies._strange(sockets, "hostile"))
            database_copies._execute(sockets, "postgres", "DROP DATABASE hostile")
        database_copies._execute(sockets, "postgres", "ALTER DATABASE airflow SET search_path = evil")
        assert database_copies._strange(sockets, "airflow") == ["setting search_path=evil"]
        database_copies._execute(sockets, "postgres", "ALTER DATABASE airflow RESET search_path")


def test_a_dump_runs_without_rights_over_the_server(cluster, tmp_path):
    with database_copies._server(cluster) as sockets:
        database_copies._execute(sockets, "postgres", "CREATE DATABASE mlflow2 TEMPLATE mlflow")
        database_copies._execute(sockets, "mlflow2", "CREATE EXTENSION IF NOT EXISTS plpgsql")
        database_copies._execute(sockets, "mlflow2", "CREATE FUNCTION h() RETURNS int AS $$ SELECT 1 $$ LANGUAGE sql")
        database_copies.dump(sockets, "mlflow2", tmp_path / "mlflow.dump")
        database_copies._execute(sockets, "postgres", "DROP DATABASE mlflow2")
    with pytest.raises(MoelineError, match="holds what no dump of this platform holds: function h"):
        database_copies.put_back(cluster.parent / "refused", {"mlflow": tmp_path / "mlflow.dump"})
    (tmp_path / "mlflow.dump").write_bytes(b"PGDMP" + b"\0" * 100)
    with pytest.raises(MoelineError, match="put back the database mlflow"):
        database_copies.put_back(cluster.parent / "broken", {"mlflow": tmp_path / "mlflow.dump"})


def test_without_a_cluster_there_is_nothing_to_reach(tmp_path):
    with database_copies.reachable(Environment.load("local", tmp_path)) as sockets:
        assert sockets is None
