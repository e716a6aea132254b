"""`moeline gc`: whatever a kill leaves goes; whatever is in use, published or recorded stays."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import small_home
from small_home import DAYS, write

from expectations.tables import TABLES
from jobs import gc, gc_command
from jobs.config import PREPARE_STAGES
from jobs.environment import REPO, Environment
from jobs.services import delta, ledger, locks
from jobs.services.platform import engines, services
from jobs.tools import StageTools

STRAY = {
    "working folders": ("warehouse/_staging/dead/unique_documents/part-0.parquet", "warehouse/_staging/forget-x/part-0.parquet"),
    "rows never published": ("warehouse/fingerprints/interval=2026-01-01/0123.parquet", "warehouse/checks/part-1.snappy.parquet#1"),
    "unfinished commits": ("warehouse/fingerprints/_delta_log/_commit_6a.json.tmp",),
    "unfinished checkpoints": ("artifacts/checkpoints/k2/.unfinished-7/model.safetensors",),
    "temporary files": (
        "warehouse/_results/train/.k.json.0123456789abcdef0123456789abcdef.tmp", "attempts/0123456789abcdef0123456789abcdef.tmp", ".platform.json.ab12_x9z",
        "artifacts/data/d/.0123456789abcdef0123456789abcdef", "airflow/.passwords.json.ab12_x9z",
    ),
    "locks": ("warehouse/_locks/run--0123.lock", "warehouse/_locks/artifact--tokenizers--a--tokenizer.json.lock"),
    "Spark's scratch folders": ("spark/local/blockmgr-1/00/x", "spark/local/artifacts-2/y"),
}  # fmt: skip

STAY = {"forget.lock", *(f"{delta.writers_lock(name)}.lock" for name in TABLES)}


@pytest.fixture
def home(tmp_path: Path) -> Environment:
    env = small_home.make(tmp_path / "home")
    (env.home / "attempts" / "a1.json").unlink()
    return env


def litter(env: Environment) -> list[Path]:
    return [write(env.home / name, "left") for names in STRAY.values() for name in names]


def files(env: Environment) -> set[Path]:
    return {file for file in env.home.rglob("*") if file.is_file() and file.name not in STAY}


def test_what_was_left_goes_and_nothing_else(home: Environment) -> None:
    gc.collect(home, older_than_seconds=0)
    before, version = files(home), delta.latest(home, "fingerprints")
    left = litter(home)
    told = gc.collect(home, older_than_seconds=0, dry_run=True)
    assert set(left) <= files(home), "a dry run removes nothing"
    found = gc.collect(home, older_than_seconds=0)
    assert files(home) == before and found["kept"] == []
    # A working folder, a checkpoint and a scratch folder go as a whole.
    assert found["counts"] == {kind: len(names) for kind, names in STRAY.items()} == told["counts"]
    assert found["bytes"] == told["bytes"] == 4 * len(left)
    assert small_home.rows_by_day(home, version) == small_home.NEWEST
    assert small_home.rows_by_day(home, type(version)("fingerprints", 1)) == {DAYS[0]: 3}, "older versions stay"
    assert gc.collect(home, older_than_seconds=0) == {"counts": {}, "bytes": 0, "kept": [], "dry_run": False}


def test_a_young_temporary_file_may_be_somebodys(home: Environment) -> None:
    young = write(home.home / "artifacts/data/d/.0123456789abcdef0123456789abcdef", "half")
    old = write(home.home / "attempts/0123456789abcdef0123456789abcdef.tmp", "half")
    os.utime(old, (time.time() - 4000,) * 2)
    found = gc.collect(home)
    assert young.exists() and not old.exists() and "too young" in " ".join(found["kept"])


def test_what_a_writer_has_not_committed_yet_stays_and_is_named(home: Environment) -> None:
    stray = write(home.home / STRAY["rows never published"][0], "half")
    lock = delta.writers_lock("fingerprints")
    with locks.locked(home, lock, shared=True):
        found = gc.collect(home, older_than_seconds=0)
        assert stray.exists() and "fingerprints" in " ".join(found["kept"])
        with locks.locked(home, lock, shared=True):
            pass  # writers do not wait for one another
    gc.collect(home, older_than_seconds=0)
    assert not stray.exists()


def test_a_running_attempt_a_running_training_and_a_held_lock_keep_theirs(home: Environment) -> None:
    attempt = ledger.Attempt(PREPARE_STAGES[0], "tiny", "k", DAYS[0], home.stage_resources("ingest"), time.time())
    running = ledger.Running(home, attempt)
    working = StageTools(home, running)
    mine = write(working.staging / "part-0.parquet", "rows")
    checkpoint = write(home.artifacts / "checkpoints/k1/.unfinished-9/model.safetensors", "half")
    with open(home.artifacts / "checkpoints/k1/writer.lock") as training, locks.locked(home, "run--held"):
        fcntl.flock(training, fcntl.LOCK_EX)
        found = gc.collect(home, older_than_seconds=0)
        assert mine.exists() and checkpoint.exists() and (home.home / "warehouse/_locks/run--held.lock").exists()
    assert len(found["kept"]) == 2
    elsewhere = Environment.load("local", home.home.parent / "another-home")
    gc.collect(replace(elsewhere, warehouse=home.warehouse), older_than_seconds=0)
    assert mine.exists(), "another home on the same warehouse"
    working._held.close()  # as its death does
    running.close("succeeded")
    gc.collect(home, older_than_seconds=0)
    assert not mine.exists() and not checkpoint.exists() and not (home.home / "warehouse/_locks/run--held.lock").exists()


def test_who_waits_for_a_lock_that_is_removed_still_waits_for_its_holder(home: Environment) -> None:
    """gc may remove a lock file between another process's open and its lock: two would hold what each believes to be the same lock."""
    order: list[str] = []
    inside = threading.Event()

    def work(name: str) -> None:
        with locks.locked(home, "run--x"):
            order.append(f"{name} in")
            inside.set()
            time.sleep(0.3)
            order.append(f"{name} out")

    first = threading.Thread(target=work, args=("first",))
    first.start()
    inside.wait(5)
    second = threading.Thread(target=work, args=("second",))
    second.start()
    time.sleep(0.1)  # it has the file open and waits
    (home.home / "warehouse/_locks/run--x.lock").unlink()
    third = threading.Thread(target=work, args=("third",))
    first.join()
    third.start()
    second.join()
    third.join()
    assert [order[k].split()[0] == order[k + 1].split()[0] for k in range(0, 6, 2)] == [True] * 3, order


WRITER = """
import itertools, sys
from pathlib import Path
import small_home
from jobs.environment import Environment
env = Environment.load("local", Path(sys.argv[1]))
for number in itertools.count():
    small_home.publish(env, small_home.DAYS[number % 2], 2 + number % 5, Path(sys.argv[2]))
"""


def test_writers_killed_at_random_beside_it_lose_no_row_and_leave_no_file(home: Environment, tmp_path: Path) -> None:
    """Real writers of one table, killed by SIGKILL, with gc running the whole time: every version stays readable, then nothing unnamed is left."""
    command = [sys.executable, "-c", WRITER, str(home.home)]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests" / "unit")])}
    for number in range(6):
        writers = [subprocess.Popen([*command, str(tmp_path / str(who))], env=variables) for who in range(2)]
        began, before = time.monotonic(), delta.latest(home, "fingerprints").version
        while delta.latest(home, "fingerprints").version < before + 4 + 3 * number and time.monotonic() - began < 60:
            gc.collect(home, older_than_seconds=3600)
        for writer in writers:
            assert writer.poll() is None, "a writer failed"
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
    gc.collect(home, older_than_seconds=0)
    newest = delta.latest(home, "fingerprints").version
    assert newest > 6 * 4
    for version in range(1, newest + 1):
        rows = small_home.rows_by_day(home, type(delta.latest(home, "fingerprints"))("fingerprints", version))
        assert rows and all(2 <= number <= 6 for number in rows.values())
    assert gc.collect(home, older_than_seconds=0)["counts"] == {}


def test_the_command_tells_what_went(home: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs import cli

    litter(home)
    assert cli.main(["gc", "--home", str(home.home), "--older-than", "0"]) == 0
    assert "2 rows never published" in (said := capsys.readouterr().out) and "gone" in said
    assert cli.main(["gc", "--home", str(home.home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {}
    for wrong in ("-1", "nan", "inf"):
        assert cli.main(["gc", "--home", str(home.home), "--older-than", wrong]) == 1
        assert "no age" in capsys.readouterr().err
    with contextlib.suppress(SystemExit):
        cli.main(["gc", "--help"])
    assert "No published row" in " ".join(capsys.readouterr().out.split())
    assert "Nothing was left" in gc_command.render({"counts": {}, "bytes": 0, "kept": [], "dry_run": False})


def test_sockets_of_sparks_daemons_go_when_no_engine_can_be_running(home: Environment) -> None:
    write(home.home / "spark" / "server.properties", "")
    runtime = services.runtime_folder(home.home)
    try:
        left = write(runtime / engines.SPARK_SOCKETS / ".0123.sock", "")
        assert gc.collect(home, older_than_seconds=0)["counts"]["Spark's scratch folders"] == 1
        assert not left.exists()
    finally:
        shutil.rmtree(runtime)
