"""The landing zone in a bucket: stages that read it over S3's protocol, from a server in a process of its own, make the tables they make of a folder."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import psutil
import pytest
import s3fs
from ray_trainings import free_port
from stage_processes import start, table_rows, written_by

from jobs import sample_data
from jobs.contract import MoelineError
from jobs.environment import REPO, Environment
from jobs.services import delta, landing

pytestmark = pytest.mark.integration
DAY, STAGES = "2026-01-01", ("ingest", "clean")


class Bucket:
    """A server of the S3 protocol (moto) with one bucket; keys and address as fsspec takes them from the environment."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=(folder / "moto.log").open("w"), stderr=subprocess.STDOUT)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                assert self.process.poll() is None, (folder / "moto.log").read_text()
                time.sleep(0.2)
        self.variables = {"FSSPEC_S3_KEY": "key", "FSSPEC_S3_SECRET": "not-a-secret", "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}
        self.settings = {name.removeprefix("FSSPEC_S3_").lower(): value for name, value in self.variables.items()}
        self.store = s3fs.S3FileSystem(**self.settings)
        self.store.mkdir("corpus")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    made = Bucket(tmp_path_factory.mktemp("store"))
    yield made
    made.process.send_signal(signal.SIGCONT)
    made.process.kill()
    made.process.wait()


@pytest.fixture(scope="module")
def places(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> tuple[Environment, Environment]:
    """(landing in a folder, the same files landed in the bucket)."""
    root = tmp_path_factory.mktemp("homes")
    here = Environment.load("local", root / "here")
    sample_data.write(here.landing, [DAY], target_bytes=400_000)
    bucket.store.put(f"{here.landing}/", "corpus/landed/", recursive=True)
    file = root / "bucket.toml"
    file.write_text((REPO / "infra/env/local.toml").read_text().replace('landing = "landing"', 'landing = "s3://corpus/landed"'))
    return here, Environment.load(str(file), root / "there")


@pytest.fixture
def keys(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a person sets them before `moeline up`."""
    for name, value in bucket.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "s3", bucket.settings)  # as fsspec reads those variables when it is imported


def test_stages_make_of_a_bucket_what_they_make_of_a_folder(places, bucket, keys):
    here, there = places
    for env in places:
        for name in STAGES:
            away = name == "ingest" and env is there
            if away:
                bucket.process.send_signal(signal.SIGSTOP)
            process = start(env, name, DAY)
            if away:
                go_on_later(bucket, process, seconds=20)
            told = process.communicate(timeout=600)[1]
            assert process.returncode == 0, told[-3000:]
    assert table_rows(there, written_by(STAGES)) == table_rows(here, written_by(STAGES))
    assert len(delta.rows(there, "documents")) > 20 and not delta.rows(there, "quarantine")
    assert landing.days(there) == [DAY] and landing.is_there(there, landing.files(there, DAY)[0].relative)
    assert [f.relative for f in landing.files(there, DAY)] == [f.relative for f in landing.files(here, DAY)]


def go_on_later(bucket: Bucket, process: subprocess.Popen[str], *, seconds: float) -> None:
    """Let the stopped store answer again some time after the stage began to wait for it."""
    deadline = time.monotonic() + 300
    while not any(c.raddr and c.raddr.port == bucket.port for p in family(process.pid) for c in connections(p)):
        assert process.poll() is None and time.monotonic() < deadline, "the stage never asked the store"
        time.sleep(0.1)
    time.sleep(seconds)
    assert process.poll() is None, "the stage ended without the store"
    bucket.process.send_signal(signal.SIGCONT)


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


def test_a_store_that_is_away_is_named_and_nothing_is_taken_for_an_empty_day(places, keys, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf["s3"], "endpoint_url", f"http://127.0.0.1:{free_port()}")
    for ask in (landing.days, lambda env: landing.files(env, DAY)):
        with pytest.raises(MoelineError, match=r"landing zone s3://corpus/landed could not be read: .*(connect|Connect)"):
            ask(places[1])


def test_a_bucket_that_is_not_there_is_no_empty_day(places, keys):
    with pytest.raises(MoelineError, match="s3://no-such-bucket/landed"):
        landing.files(replace(places[1], landing="s3://no-such-bucket/landed"), DAY)
