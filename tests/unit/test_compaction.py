"""Append-only tables are joined to few files without losing a row, whoever appends, joins or is killed meanwhile; logs keep few checkpoints."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from jobs import gc
from jobs.contract import TableVersion
from jobs.environment import REPO, Environment
from jobs.services import compaction, delta, table_files

APPENDER = """
import sys
from pathlib import Path
from jobs.environment import Environment
from jobs.services import compaction, delta
compaction.FILES = 8
env = Environment.load("local", Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    name = f"{sys.argv[2]}-{number}"
    delta.append(env, "checks", [{"run_key": name, "rule": "r", "passed": True, "observed": "x" * number}], once=name)
    print(name, flush=True)
"""


def append(env: Environment, number: int) -> None:
    delta.append(env, "checks", [{"run_key": f"k{number}", "rule": "r", "passed": number % 2 == 0}], once=f"k{number}")


def files(env: Environment) -> list[str]:
    return delta.open_table(env, "checks").file_uris()


def keys(env: Environment) -> list[str]:
    return sorted(row["run_key"] for row in delta.rows(env, "checks"))


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "FILES", 8)


def test_rows_stay_the_same_and_files_stay_few(env: Environment, eight: None) -> None:
    for number in range(30):
        append(env, number)
        assert len(files(env)) < 8
    assert keys(env) == sorted(f"k{n}" for n in range(30))
    named = ", ".join(f"'{file.removeprefix('file://')}'" for file in files(env))
    assert duckdb.sql(f"SELECT count(*), sum(passed::int) FROM read_parquet([{named}])").fetchall() == [(30, 15)]
    append(env, 7)
    assert len(keys(env)) == 30, "an id is known after its file was joined with others"


def test_older_versions_are_as_they_were(env: Environment, eight: None) -> None:
    for number in range(20):
        append(env, number)
    told = table_files.rows_by_version(env.warehouse / "checks")
    assert sorted(set(told.values())) == list(range(21)) and told[max(told)] == 20


def test_what_stages_publish_is_left_alone(env: Environment, eight: None) -> None:
    assert not compaction.join_files(env, "registrations") and delta.open_table(env, "registrations") is None


def test_who_joins_already_is_not_awaited(env: Environment, eight: None) -> None:
    from jobs.services import locks

    with locks.locked(env, "join--checks"):
        for number in range(9):
            append(env, number)
    assert len(files(env)) == 9 and compaction.join_files(env, "checks") and len(files(env)) == 1


def test_appenders_killed_at_random_lose_nothing_that_they_said_was_written(env: Environment) -> None:
    luck, said = random.Random(4), set()
    append(env, 0)
    running = [start(env, f"w{k}", 60) for k in range(3)]
    for process in running[:2]:
        time.sleep(luck.uniform(0.5, 2.5))
        process.send_signal(signal.SIGKILL)
    for process in running:
        said |= set(process.communicate(timeout=120)[0].split())
    assert running[2].returncode == 0
    found = keys(env)
    assert said <= set(found) and len(found) == len(set(found)), "a row was lost, or is there twice"
    assert len(files(env)) < 8 + 3
    gc.collect(env, older_than_seconds=0)
    assert keys(env) == found and gc.collect(env, older_than_seconds=0)["counts"] == {}


def start(env: Environment, name: str, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", APPENDER, str(env.home), name, str(number)]
    return subprocess.Popen(command, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("newest", "stay"),
    [(0, []), (100, [100]), (1000, [100, 200, 500, 900, 1000]), (20_000, [100, 200, 500, 1000, 2000, 4000, 8100, 16300, 19900, 20000])],
)
def test_checkpoints_of_a_log_take_about_as_much_as_the_newest(tmp_path: Path, newest: int, stay: list[int]) -> None:
    log = tmp_path / table_files.LOG
    log.mkdir()
    for version in range(100, newest + 1, 100):
        (log / f"{version:020}.checkpoint.parquet").touch()
    assert compaction.spare_checkpoints(tmp_path, 0.0) == [], "the young ones may be being read"
    for file in compaction.spare_checkpoints(tmp_path, float("inf")):
        file.unlink()
    assert sorted(int(file.name[:20]) for file in log.iterdir()) == stay


def test_a_table_whose_checkpoints_went_reads_the_same_at_every_version(env: Environment) -> None:
    for number in range(40):
        append(env, number)
        if number % 5 == 4:
            delta.open_table(env, "checks").create_checkpoint()
    before = table_files.rows_by_version(env.warehouse / "checks")
    log = env.warehouse / "checks" / table_files.LOG
    assert len(list(log.glob("*.checkpoint.parquet"))) == 8
    assert gc.collect(env, older_than_seconds=0)["counts"] == {"spare checkpoints of tables' logs": 3}
    assert table_files.rows_by_version(env.warehouse / "checks") == before
    for version in (3, 12, 17, 29, 38):
        assert len(delta.dataset(env, TableVersion("checks", version)).to_table()) == before[version] == version
    assert len(keys(env)) == 40
