"""Databases of a home move to a PostgreSQL reached by URL and password, as a user who owns two databases and nothing else; and into a new home."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_home
from moved_homes import environment_file

from jobs import migrate
from jobs.contract import MoelineError
from jobs.environment import REPO, Environment
from jobs.services import unfinished_home
from jobs.services.platform import database_copies, database_moves, mlflow_server, postgres

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader")  # of MLflow's own migrations
PASSWORD = "it's a %41 secret"  # noqa: S105 - of a server that lives for this test
IN_URL = "it%27s%20a%20%2541%20secret"


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """Not pytest's folder: as root, PostgreSQL steps down."""
    folder = Path(tempfile.mkdtemp(prefix="moeline-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def source(disk: Path) -> Environment:
    """A home with MLflow's own tables and a registered model, and something of Airflow's."""
    env = small_home.make(disk / "home")
    database_copies.put_back(env.home / "postgres", {})
    with database_copies.at_rest(env.home) as sockets:
        database_copies._execute(sockets, "airflow", "CREATE TABLE dag_run (id serial PRIMARY KEY, note text CHECK (length(note) > 0))")
        database_copies._execute(sockets, "airflow", "INSERT INTO dag_run (note) SELECT 'é' || n FROM generate_series(1, 100) n")
        url = postgres.url(sockets, "mlflow")
        mlflow_server.migrate(url)
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=url, registry_uri=url)
        run = client.create_run(client.create_experiment("moeline", artifact_location="mlflow-artifacts:/1"))
        client.create_registered_model("moeline-tiny")
        client.create_model_version("moeline-tiny", "mlflow-artifacts:/1/model", run.info.run_id)
        client.set_registered_model_alias("moeline-tiny", "champion", "1")
    return env


@pytest.fixture(scope="module")
def server(disk: Path) -> Iterator[tuple[str, database_moves.Database]]:
    """URL of a PostgreSQL on a TCP port that asks for a password, and its owner's way in."""
    folder = disk / "server"
    database_copies.put_back(folder, {})
    hba = "local all postgres trust\nhost all moved 127.0.0.1/32 scram-sha-256\n"
    (folder / "data" / "pg_hba.conf").write_text(hba)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sockets = Path(tempfile.mkdtemp(prefix="moeline-", dir="/tmp")) / "s"
    postgres.prepare_folders(folder, sockets)
    command = [*postgres.server_command(folder / "data", sockets), "-c", "listen_addresses=127.0.0.1", "-c", f"port={port}"]
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        owner = database_moves.Database("postgres", (("host", str(sockets)), ("port", str(port)), ("user", "postgres")))
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(MoelineError):
                ask(owner, f"CREATE ROLE moved LOGIN PASSWORD '{PASSWORD.replace(chr(39), chr(39) * 2)}'")
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"postgresql+psycopg2://moved:{IN_URL}@127.0.0.1:{port}/any?application_name=moeline", owner
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(sockets.parent)


def ask(database: database_moves.Database, *statements: str) -> list:
    import psycopg2

    try:
        connection = psycopg2.connect(database.dsn, password=database.password or None)
    except psycopg2.OperationalError as error:
        raise MoelineError(str(error)) from None
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@pytest.fixture
def empty(server: tuple[str, database_moves.Database], disk: Path) -> tuple[str, Path]:
    """The server with two new databases, and the environment file that names it."""
    url, owner = server
    for name in postgres.DATABASES:
        ask(owner, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name} OWNER moved")
    return url, environment_file(disk / "system.toml", services={"postgres_url": url})


def check_whole(url: str) -> None:
    from mlflow.tracking import MlflowClient

    airflow = database_moves.at_url(url, "airflow")
    assert ask(airflow, "SELECT count(*), min(note), max(id) FROM dag_run") == [(100, "é1", 100)]
    assert ask(airflow, "INSERT INTO dag_run (note) VALUES ('x') RETURNING id") == [(101,)], "sequences go on"
    with pytest.raises(Exception, match="violates check constraint"):
        ask(airflow, "INSERT INTO dag_run (note) VALUES ('')")
    for database in postgres.DATABASES:
        found = database_moves.at_url(url, database)
        assert ask(found, f"SELECT count(*) FROM pg_namespace WHERE nspname = '{database_moves.CLAIM}'") == [(0,)]
        assert ask(found, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'") == [("moved",)]
    at = url.replace("/any?", "/mlflow?")
    assert MlflowClient(tracking_uri=at, registry_uri=at).get_model_version_by_alias("moeline-tiny", "champion").source == "mlflow-artifacts:/1/model"


def test_databases_move_to_a_server(source, empty, disk, capfd):
    url, file = empty
    target = Environment.load(str(file), disk / "moved")
    found = migrate.migrate(source, target)
    assert found["databases"]["airflow"] == {"tables": 1, "rows": 100} and found["databases"]["mlflow"]["tables"] > 20
    assert not (target.home / "postgres").exists() and not (target.home / ".databases").exists()
    assert PASSWORD not in (target.home / migrate.RECEIPT).read_text() + "".join(capfd.readouterr()) and "secret" not in migrate.render(found)
    check_whole(url)
    assert migrate.migrate(source, target)["already"]
    with pytest.raises(MoelineError, match=r"airflow at 127.0.0.1:\d+ is not empty: it holds dag_run"):
        migrate.migrate(source, Environment.load(str(file), disk / "another"))
    assert not (disk / "another").exists()
    shutil.rmtree(target.home)


KILL = """
import os, signal, sys
from jobs import migrate
from jobs.environment import Environment
from jobs.services.platform import database_moves
name, count, before = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "before"
real, calls = getattr(database_moves, name), []
def dies(*given, **named):
    calls.append(1)
    if before and len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    found = real(*given, **named)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
setattr(database_moves, name, dies)
migrate.migrate(Environment.load("local", sys.argv[4]), Environment.load(sys.argv[5], sys.argv[6]))
"""


@pytest.mark.parametrize(
    ("name", "count", "moment"), [("run_program", 3, "before"), ("fill", 1, "after"), ("fill", 2, "after"), ("release", 1, "before"), ("release", 1, "after")]
)
def test_killed_and_run_again(source, empty, disk, name, count, moment):
    url, file = empty
    target = Environment.load(str(file), disk / "killed")
    shutil.rmtree(target.home, ignore_errors=True)
    command = [sys.executable, "-c", KILL, name, str(count), moment, str(source.home), str(file), str(target.home)]
    done = subprocess.run(command, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert target.home.exists() == (name == "release") and not (target.home / unfinished_home.MARK).exists()
    if name == "fill":
        with pytest.raises(MoelineError, match=f"is being filled for {target.home}"):
            migrate.migrate(source, Environment.load(str(file), disk / "another"))
    assert migrate.migrate(source, target)["already"] == (name == "release")
    check_whole(url)


def test_databases_of_a_server_stay_where_both_name_it(source, empty, disk):
    url, file = empty
    target = Environment.load(str(file), disk / "first")
    migrate.migrate(source, target)
    same = Environment.load(str(environment_file(disk / "same.toml", services={"postgres_url": url})), disk / "second")
    assert migrate.migrate(target, same)["databases"] == {}, "both name one server"
    check_whole(url)


def test_databases_come_along_into_a_new_home(source, disk):
    target = Environment.load(str(environment_file(disk / "folders.toml", warehouse=disk / "disk1" / "tables")), disk / "embedded")
    found = migrate.migrate(source, target)
    assert found["databases"]["airflow"] == {"tables": 1, "rows": 100}
    with database_copies.reachable(target) as sockets:
        assert database_copies._execute(sockets, "airflow", "SELECT count(*) FROM dag_run") == [(100,)]
        assert database_copies._execute(sockets, "mlflow", "SELECT alias FROM registered_model_aliases") == [("champion",)]
