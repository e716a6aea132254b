"""The whole job with its landing zone and its tables in a bucket: the tables and the model that folders give, though the store is away in between.

Stages read and write over S3's protocol, from a server in a process of its own: Spark by hadoop-aws, delta-rs and Arrow each by their own client.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import psutil
import pytest
from ray_trainings import free_port
from s3_store import Store
from stage_processes import table_rows

from expectations.tables import TABLES
from jobs import sample_data
from jobs.contract import MoelineError
from jobs.environment import REPO, Environment
from jobs.services import delta, landing, results, table_store

pytestmark = pytest.mark.integration
DAY, RECIPE, AWAY_SECONDS = "2026-01-01", "smoke", 15
ALONE = {"costs", "checks", "registrations", "forecasts"}  # of one attempt, or of how fast the machine was: times, prices, places
VOLATILE = {"landed_at", "mlflow_run_id", "uri", "content_hash"}  # moments, ids of MLflow's, places


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = Store(tmp_path_factory.mktemp("store"), "corpus")
    yield made
    made.end()


@pytest.fixture(scope="module")
def places(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Environment, Environment]:
    """(all in folders, landing zone and tables in the bucket)."""
    root = tmp_path_factory.mktemp("homes")
    here = Environment.load("local", root / "here")
    sample_data.write(here.landing, [DAY], target_bytes=1_500_000)
    store.files.put(f"{here.landing}/", "corpus/landed/", recursive=True)
    return here, store.environment(root, "s3://corpus/team/tables", ('landing = "landing"', 'landing = "s3://corpus/landed"'))


@pytest.fixture
def keys(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", dict(store.settings))  # as fsspec reads the variables when it is imported


def job(env: Environment, store: Store) -> subprocess.Popen[str]:
    toml = env.home.parent / "store.toml" if env.tables else "local"
    command = [sys.executable, str(Path(__file__).with_name("stages_of_job.py")), str(toml), str(env.home), RECIPE, DAY]
    variables = {**os.environ, **store.variables, "PYTHONPATH": str(REPO)}
    return subprocess.Popen(command, cwd=REPO, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.timeout(2400)
def test_a_bucket_gives_the_tables_and_the_model_that_folders_give(places, store, keys):
    here, there = places
    said = job(here, store)
    told = said.communicate(timeout=1200)[1]
    assert said.returncode == 0, told[-3000:]
    store.process.send_signal(signal.SIGSTOP)
    process = job(there, store)
    answers_again(store, process)
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("clean "):  # deduplicate reads and writes next
            store.process.send_signal(signal.SIGSTOP)
            time.sleep(AWAY_SECONDS)
            store.process.send_signal(signal.SIGCONT)
    assert process.wait() == 0, "".join(told)[-3000:]
    names = sorted(name for name in TABLES if name not in ALONE and delta.latest(here, name))
    assert len(names) > 15 and {root.name for root in table_store.roots(there)} >= {*names, "costs", "checks"}
    mine, theirs = (table_rows(env, names, VOLATILE) for env in (there, here))
    for name in names:
        assert mine[name] == theirs[name], name
    assert weights(there) == weights(here)
    assert loss_forecast(there) == loss_forecast(here)
    assert not any((there.warehouse / name).exists() for name in TABLES)


def loss_forecast(env: Environment) -> float:
    return next(row["predicted"] for row in delta.rows(env, "forecasts") if row["metric"] == "loss")


def weights(env: Environment) -> tuple[str, list[str]]:
    """(sha256 that the training's row names, those of the files of weights in its folder)."""
    (row,) = delta.rows(env, "checkpoints")
    files = (env.artifacts / "checkpoints" / results.newest(env, "train").run_key).rglob("model.safetensors")
    found = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert found
    return row["sha256"], found


def answers_again(store: Store, process: subprocess.Popen[str]) -> None:
    """Let the stopped store answer again some time after the job began to wait for it."""
    deadline = time.monotonic() + 300
    while not any(c.raddr and c.raddr.port == store.port for p in family(process.pid) for c in connections(p)):
        assert process.poll() is None and time.monotonic() < deadline, "the job never asked the store"
        time.sleep(0.1)
    time.sleep(AWAY_SECONDS)
    assert process.poll() is None, "the job ended without the store"
    store.process.send_signal(signal.SIGCONT)


def family(pid: int) -> list[psutil.Process]:
    try:
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def connections(process: psutil.Process) -> list:
    try:
        return process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return []


def test_what_landed_is_the_same_in_both(places, keys):
    here, there = places
    assert landing.days(there) == [DAY] and landing.is_there(there, landing.files(there, DAY)[0].relative)
    assert [f.relative for f in landing.files(there, DAY)] == [f.relative for f in landing.files(here, DAY)]


def test_a_store_that_is_away_is_named_and_nothing_is_taken_for_an_empty_day(places, keys, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf["s3"], "endpoint_url", f"http://127.0.0.1:{free_port()}")
    for ask in (landing.days, lambda env: landing.files(env, DAY)):
        with pytest.raises(MoelineError, match=r"landing zone s3://corpus/landed could not be read: .*(connect|Connect)"):
            ask(places[1])


def test_a_bucket_that_is_not_there_is_no_empty_day(places, keys):
    with pytest.raises(MoelineError, match="s3://no-such-bucket/landed"):
        landing.files(replace(places[1], landing="s3://no-such-bucket/landed"), DAY)
