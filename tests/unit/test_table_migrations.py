"""Tables of every earlier release are brought up to date, wherever that is killed, whoever does it at the same time; newer ones are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import duckdb
import old_tables
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from old_tables import EARLIER, PARTS, held, ordered

from expectations import check
from expectations.migrations import steps_between
from expectations.tables import TABLES
from jobs import cli, forget, recipes, run
from jobs.contract import CommitConflict, MoelineError, StageResult, TableVersion
from jobs.environment import REPO, Environment
from jobs.services import delta, platform, results, table_migrations

FILLED = sorted({name for name, version in EARLIER if any(s.fill for s in steps_between(name, version, TABLES[name].schema_version))})


def expected(name: str, version: int, old: list[dict]) -> list[dict]:
    """The rows with what the migration promises, worked out by hand."""
    by_hand = {
        "rule": lambda row: "ngram", "removed_characters": lambda row: 0, "key_suspect": lambda row: False,
        "mode": lambda row: "exact", "contaminated": lambda row: row["verdict"] == "contaminated",
        "format": lambda row: "no_words" if row["verdict"] == "format_failure" else "ok",
    }  # fmt: skip
    now = TABLES[name].column_names
    return ordered([{column: row[column] if column in row else by_hand.get(column, lambda row: None)(row) for column in now} for row in old])


def by_duckdb(env: Environment, name: str, names: list[str]) -> list[dict]:
    """The rows as DuckDB reads the live files, of which the log is read by hand."""
    from jobs.services import table_files

    root = env.warehouse / name
    files = sorted(str(root / file) for file in table_files.newest(root).live)
    cast = ", ".join(f'cast("{c}" as varchar) "{c}"' if c == TABLES[name].partition else f'"{c}"' for c in names)
    connection = duckdb.connect()
    connection.execute("set timezone = 'UTC'")
    found = connection.sql(f"select {cast} from read_parquet(?, hive_partitioning=true, union_by_name=true)", params=[files])
    return ordered(found.to_arrow_table().to_pylist())


def breaks(env: Environment, name: str) -> list[str]:
    """Rules of severity error that the rows of a partition of the newest version break."""
    partition, found = TABLES[name].partition, []
    for part in PARTS if partition else [None]:
        rows = delta.dataset(env, delta.latest(env, name), where_in=part and [part]).to_table()
        frame = rows.select(check.columns_needed(TABLES[name])).to_pandas()
        found += [r.sentence() for r in check.evaluate(TABLES[name], frame, engine="pandas") if not r.passed and r.severity == "error"]
    return found


def schema_version(env: Environment, name: str) -> str | None:
    return DeltaTable(str(env.warehouse / name)).metadata().configuration.get(table_migrations.PROPERTY)


@pytest.mark.parametrize(("name", "version"), EARLIER)
def test_a_table_of_every_earlier_shape(env, name, version):
    old = old_tables.write(env, name, version)
    before = delta.latest(env, name).version
    found = table_migrations.upgrade(env)
    assert [(row["table"], row["from"], row["to"]) for row in found["tables"]] == [(name, version, TABLES[name].schema_version)]
    assert schema_version(env, name) == str(TABLES[name].schema_version)
    assert held(env, name) == expected(name, version, old)
    physical = list(old_tables.columns(name, version)) + [s.name for s in steps_between(name, version, TABLES[name].schema_version) if s.fill]
    assert by_duckdb(env, name, physical) == ordered([{c: row[c] for c in physical} for row in expected(name, version, old)])
    polars = pl.scan_delta(str(env.warehouse / name)).collect()
    assert set(polars.columns) == set(TABLES[name].column_names)
    assert ordered(polars.select(TABLES[name].column_names).to_dicts()) == expected(name, version, old)
    assert breaks(env, name) == []
    assert held(env, name, tuple(old_tables.columns(name, version)), before) == ordered(old), "older versions stay as they were"
    assert table_migrations.upgrade(env)["tables"] == [] and delta.latest(env, name).version == found["tables"][0]["version"]


def test_there_are_earlier_shapes_of_both_kinds():
    assert FILLED == ["contamination", "scores", "verdicts"]
    assert {name for name, _ in EARLIER} - set(FILLED) == {"costs", "duplicates", "responses", "training_documents"}


def test_a_new_table_says_its_version(env):
    delta.create_if_missing(env, "scores")
    delta.create_if_missing(env, "documents")
    assert (schema_version(env, "scores"), schema_version(env, "documents")) == ("2", "1")
    assert delta.latest(env, "scores").version == 0


def publish(env: Environment, name: str, part: str, rows: list[dict]) -> TableVersion:
    partition = TABLES[name].partition
    folder = env.warehouse / "_staging" / os.urandom(4).hex()
    folder.mkdir(parents=True)
    schema = pa.schema([f for f in delta.arrow_schema(TABLES[name]) if f.name != partition])
    pq.write_table(pa.Table.from_pylist([{c: r[c] for c in schema.names} for r in rows], schema=schema), folder / "part-0.parquet")
    return delta.publish(env, name, folder, partition_value=part, metadata={})


def test_rows_written_before_versions_existed_are_left_alone(env, monkeypatch):
    old = old_tables.write(env, "scores")
    new = [row | {"mode": "fixed"} for row in old_tables.rows("scores", 2, "2026-01-02", 5)]
    with monkeypatch.context() as earlier:  # a moeline that had the column and no versions
        earlier.setattr(table_migrations, "ready", lambda env, name, opened: opened)
        publish(env, "scores", "2026-01-02", new)
    assert schema_version(env, "scores") is None
    (file,) = [f for f in delta.open_table(env, "scores").file_uris() if "2026-01-02" in f]
    assert table_migrations.upgrade(env)["tables"][0]["files"] == 1
    assert file in delta.open_table(env, "scores").file_uris()
    assert held(env, "scores") == ordered(expected("scores", 1, [r for r in old if r["run_key"] == PARTS[0]]) + new)


def test_what_touches_no_file_is_done_by_whoever_writes(env):
    old = old_tables.write(env, "costs")
    assert len(delta.rows(env, "costs")) == 6
    new = old_tables.rows("costs", 2, "", 1)
    delta.append(env, "costs", new, once="a")
    delta.append(env, "costs", new, once="a")
    assert schema_version(env, "costs") == "2"
    assert held(env, "costs") == ordered(expected("costs", 1, old) + expected("costs", 2, new))
    old_tables.write(env, "duplicates")
    publish(env, "duplicates", PARTS[1], old_tables.rows("duplicates", 2, PARTS[1], 1))
    assert schema_version(env, "duplicates") == "2" and len(held(env, "duplicates")) == 4


# -- refused ----------------------------------------------------------------------------------------------------------------


def every_way_to_write(env: Environment, name: str) -> list:
    """Calls that must refuse, each before it changes or computes anything."""

    def module_run(*_):
        raise AssertionError("computed")

    stage = SimpleNamespace(__name__="jobs.stages.train", ENGINE="arrow", READS={name: "all"}, WRITES=("checkpoints",), REVISION=1, run=module_run)

    def staged(patch):
        patch.setattr(run, "stage_module", lambda _: stage)
        run.run_stage(env, "train", recipes.load("smoke"))

    return [
        lambda patch: publish(env, name, PARTS[0], old_tables.rows(name, TABLES[name].schema_version, PARTS[0])),
        lambda patch: delta.append(env, name, old_tables.rows(name, TABLES[name].schema_version, PARTS[0])),
        staged,
        lambda patch: platform.up(env),
        lambda patch: forget.forget(env, "0" * 32, here=True),
    ]


@pytest.mark.parametrize("name", ["scores", "fingerprints"])
def test_a_table_of_a_later_moeline_is_refused(env, name, monkeypatch):
    delta.create_if_missing(env, name)
    later = str(TABLES[name].schema_version + 1)
    DeltaTable(str(env.warehouse / name)).alter.set_table_properties({table_migrations.PROPERTY: later}, raise_if_not_exists=False)
    before = delta.latest(env, name)
    said = f"Table {name} in .*{name} has schema version {later}; this version of moeline knows .*install that one, or restore a backup"
    for write in [*every_way_to_write(env, name), lambda _: table_migrations.upgrade(env), lambda _: table_migrations.upgrade(env, only_look=True)]:
        with pytest.raises(MoelineError, match=said):
            write(monkeypatch)
    assert delta.latest(env, name) == before
    assert delta.rows(env, name) == []  # reading is not refused: a report may still be looked at


def test_an_older_table_is_upgraded_by_the_command_alone(env, monkeypatch):
    old_tables.write(env, "verdicts")
    old_tables.write(env, "responses")
    before = delta.latest(env, "verdicts")
    for write in every_way_to_write(env, "verdicts"):
        with pytest.raises(MoelineError, match=r"earlier version of moeline: verdicts \(version 1, now 2\)\. 2 files .* Run: moeline upgrade"):
            write(monkeypatch)
    assert delta.latest(env, "verdicts") == before
    table_migrations.upgrade(env)
    table_migrations.require_current(env)
    assert schema_version(env, "responses") == schema_version(env, "verdicts") == "2"


def test_the_platform_adds_columns_by_itself(env):
    old_tables.write(env, "responses")
    table_migrations.require_current(env)  # what `moeline up` and a stage begin with
    assert schema_version(env, "responses") == "2"


@pytest.mark.parametrize("said", ["two", "0", "-1", "1.5", ""])
def test_a_version_that_is_none(env, said):
    delta.create_if_missing(env, "duplicates")
    DeltaTable(str(env.warehouse / "duplicates")).alter.set_table_properties({table_migrations.PROPERTY: said}, raise_if_not_exists=False)
    if said:
        with pytest.raises(MoelineError, match="which is no version"):
            delta.create_if_missing(env, "duplicates")
    else:
        assert schema_version(env, "duplicates") == "" and delta.create_if_missing(env, "duplicates").version() > 1


# -- killed, and at the same time -------------------------------------------------------------------------------------------

KILL = """
import os, signal, sys
from deltalake import DeltaTable
from deltalake.table import TableAlterer
from jobs.environment import Environment
from jobs.services import table_migrations
moment, count, home = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def after(owner, name, before):
    real, calls = getattr(owner, name), []
    def call(*args, **kwargs):
        calls.append(1)
        if before and len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*args, **kwargs)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    setattr(owner, name, call)
owner, name, before = {
    "a file": (table_migrations, "_filled", False),
    "before the commit": (DeltaTable, "create_write_transaction", True),
    "after the commit": (DeltaTable, "create_write_transaction", False),
    "columns": (TableAlterer, "add_columns", False),
    "the version": (TableAlterer, "set_table_properties", False),
}[moment]
after(owner, name, before)
table_migrations.upgrade(Environment.load("local", home))
"""


@pytest.fixture(scope="module")
def old_home(tmp_path_factory):
    """A home with every table in its earliest shape, which is copied and never upgraded, and the rows it has when it is."""
    env = Environment.load("local", tmp_path_factory.mktemp("old") / "home")
    for name in TABLES:
        old_tables.write(env, name)
    whole = Environment.load("local", shutil.copytree(env.home, env.home.with_name("whole")))
    table_migrations.upgrade(whole)
    return env, {name: held(whole, name) for name in TABLES}, {name: delta.latest(whole, name).version for name in TABLES}


@pytest.mark.parametrize(
    ("moment", "count"),
    [("a file", 1), ("a file", 3), ("before the commit", 1), ("after the commit", 1), ("before the commit", 3), ("after the commit", 3), ("columns", 1),
     ("columns", 3), ("the version", 1), ("the version", 6)],
)  # fmt: skip
def test_killed_and_run_again(old_home, tmp_path, moment, count):
    old, rows, versions = old_home
    env = Environment.load("local", shutil.copytree(old.home, tmp_path / "home"))
    command = [sys.executable, "-c", KILL, moment, str(count), str(env.home)]
    done = subprocess.run(command, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert sum(len(held(env, name)) for name in TABLES) == sum(map(len, rows.values())), "every row can be read meanwhile"
    table_migrations.upgrade(env)
    assert {name: held(env, name) for name in TABLES} == rows
    assert {name: delta.latest(env, name).version for name in TABLES} == versions, "nothing was done twice"
    assert {name for name in TABLES if table_migrations.pending(env, name)} == set()


def test_two_at_once(old_home, tmp_path):
    old, rows, versions = old_home
    env = Environment.load("local", shutil.copytree(old.home, tmp_path / "home"))
    found, said = [], []
    threads = [threading.Thread(target=lambda: found.append(table_migrations.upgrade(env, echo=said.append))) for _ in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sorted(len(f["tables"]) for f in found) == [0, len(EARLIER)]
    assert "Another `moeline upgrade` is at work; waiting for it." in said
    assert {name: held(env, name) for name in TABLES} == rows and {name: delta.latest(env, name).version for name in TABLES} == versions


def test_two_homes_with_one_warehouse_at_once(old_home, tmp_path):
    """No lock of a home keeps them apart: the log does."""
    old, rows, _ = old_home
    env = Environment.load("local", shutil.copytree(old.home, tmp_path / "home"))
    script = "import sys; from jobs.environment import Environment as E; from jobs.services import table_migrations as t; t.upgrade(E(**{**E.load('local', "
    script += "sys.argv[1]).__dict__, 'warehouse': E.load('local', sys.argv[2]).warehouse}))"
    homes = [tmp_path / "a", tmp_path / "b"]
    [h.mkdir() for h in homes]
    running = [subprocess.Popen([sys.executable, "-c", script, str(h), str(env.home)], cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}) for h in homes]
    assert [process.wait(120) for process in running] == [0, 0]
    assert {name: held(env, name) for name in TABLES} == rows


def test_a_commit_in_between_is_kept(env, monkeypatch):
    old = old_tables.write(env, "scores")
    new = [row | {"mode": "fixed"} for row in old_tables.rows("scores", 2, "2026-01-03", 2)]
    real, ready, left = table_migrations._write_again, table_migrations.ready, [1]

    def with_a_commit(*given):
        if left and left.pop():
            monkeypatch.setattr(table_migrations, "ready", lambda env, name, opened: opened)  # of a process that read the table before
            publish(env, "scores", "2026-01-03", new)
            monkeypatch.setattr(table_migrations, "ready", ready)
        return real(*given)

    monkeypatch.setattr(table_migrations, "_write_again", with_a_commit)
    table_migrations.upgrade(env)
    assert held(env, "scores") == ordered(expected("scores", 1, old) + new)
    live = {f.rpartition("/")[2] for f in delta.open_table(env, "scores").file_uris()}
    assert len(live) == 3 and len(list((env.warehouse / "scores").rglob("*.parquet"))) == 5, "files of the lost try are removed"


def test_a_table_that_never_rests_is_left_as_it_is(env, monkeypatch):
    old = old_tables.write(env, "verdicts")

    def lost(*_):
        raise CommitConflict("verdicts: lost")

    monkeypatch.setattr(table_migrations, "_write_again", lost)
    with pytest.raises(CommitConflict, match="Run `moeline upgrade` when less is going on"):
        table_migrations.upgrade(env)
    assert held(env, "verdicts", tuple(old_tables.columns("verdicts", 1))) == ordered(old)


# -- what stays valid, and the command --------------------------------------------------------------------------------------


def test_recorded_results_stay_valid(env):
    old = old_tables.write(env, "scores")
    version = delta.latest(env, "scores")
    result = StageResult("evaluate", PARTS[1], "tiny", None, {}, {"scores": str(version)}, {}, 0.0, 1.0)
    results.record(env, result)
    table_migrations.upgrade(env)
    assert results.find(env, "evaluate", PARTS[1]) == result and results.writer_of(env, version) == result
    assert held(env, "scores", tuple(old_tables.columns("scores", 1)), version.version) == ordered(old), "the version a run key names is not touched"


def test_the_command(env, capsys):
    old_tables.write(env, "scores")
    old_tables.write(env, "costs")
    home = ["--home", str(env.home)]
    assert cli.main(["upgrade", "--check", *home]) == 0
    assert capsys.readouterr().out == "`moeline upgrade` would bring up to date:\n  scores: 1 -> 2, 2 files written again\n  costs: 1 -> 2\n"
    assert schema_version(env, "scores") is None
    assert cli.main(["upgrade", "--json", *home]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(t["table"], t["files"]) for t in told["tables"]] == [("scores", 2), ("costs", 0)] and told["upgraded"]
    assert cli.main(["upgrade", *home]) == 0
    assert capsys.readouterr().out == "Every table has the columns of this version: nothing to do.\n"
