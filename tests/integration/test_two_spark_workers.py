"""The same tables from two Spark workers as from one process: a real standalone cluster on loopback, ended with the test."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zstandard

from expectations.tables import TABLES
from jobs import sample_data
from jobs.environment import REPO, Environment
from jobs.services import delta
from jobs.services.java import find_java
from jobs.services.spark import spark_environment

pytestmark = pytest.mark.integration

DAY = "2026-11-01"
WRITTEN = (
    "clean_documents",
    "rejections",
    "unique_documents",
    "duplicates",
    "repeated_passages",
    "fingerprints",
    "training_documents",
    "contamination",
    "benchmark_items",
)


def landed(landing: Path) -> None:
    """A day of real code and docs, and in it equal and nearly equal copies under other names."""
    sample_data.write(landing, [DAY], target_bytes=400_000)
    folder = landing / "python-code" / DAY
    rows = [json.loads(line) for file in folder.glob("*.zst") for line in zstandard.decompress(file.read_bytes()).splitlines()]
    copies = [{**row, "uri": f"copy:{row['uri']}", "text": row["text"] + ("" if place % 2 else "\n# changed\n")} for place, row in enumerate(rows[:60])]
    (folder / "copies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in copies))


def awaited(log: Path, pattern: str, process: subprocess.Popen) -> str:
    """The first group of the first match in a log that is being written."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and (match := re.search(pattern, log.read_text())):
            return match[1]
        time.sleep(0.05)
    raise AssertionError(f"{pattern!r} did not appear; the log ends: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, Path]]:
    """The address of a Spark master with two workers of one core each, and the configuration folder with the secret all of them share.

    Its processes are gone afterwards.
    """
    (conf := folder / "conf").mkdir()
    (conf / "spark-defaults.conf").write_text(f"spark.authenticate true\nspark.authenticate.secret {secrets.token_hex(32)}\n")
    package = Path(importlib.util.find_spec("pyspark").submodule_search_locations[0])
    variables = {
        **os.environ,
        **spark_environment(Environment.load("local", folder)),
        "JAVA_HOME": str(find_java().home),
        "SPARK_HOME": str(package),
        "SPARK_CONF_DIR": str(conf),
    }
    started: list[subprocess.Popen] = []

    def start(name: str, *arguments: str) -> Path:
        log, command = folder / f"{name}.log", [str(package / "bin" / "spark-class"), f"org.apache.spark.deploy.{arguments[0]}", *arguments[1:]]
        with open(log, "w") as handle:
            started.append(subprocess.Popen(command, cwd=folder, env=variables, stdout=handle, stderr=subprocess.STDOUT, process_group=0))
        return log

    loopback = ("--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
    children: list[psutil.Process] = []
    try:
        address = awaited(start("master", "master.Master", *loopback), r"Starting Spark master at (spark://[\d.:]+)", started[0])
        for name in ("one", "two"):
            log = start(name, "worker.Worker", *loopback, "--cores", "1", "--memory", "800m", "--work-dir", str(folder / name), address)
            awaited(log, r"(Successfully registered with master)", started[-1])
        yield address, conf
    finally:
        for process in started:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                children += psutil.Process(process.pid).children(recursive=True)
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        _, left = psutil.wait_procs(children, timeout=20)  # Spark's Python daemons have groups of their own and end with their executor
        for process in left:
            process.kill()
    assert not left, f"still running: {left}"


def rows(home: Path) -> dict[str, list[str]]:
    """The rows of every table the stages wrote, in one order."""
    env = Environment.load("local", home)
    return {name: sorted(json.dumps(row, sort_keys=True, default=str) for row in delta.rows(env, name)) for name in WRITTEN}


def test_two_spark_workers_make_the_tables_one_process_makes(tmp_path: Path) -> None:
    assert {name for name, table in TABLES.items() if table.partition == "interval"} >= set(WRITTEN)
    alone, together, folder = tmp_path / "alone", tmp_path / "together", tmp_path / "cluster"
    landed(alone / "landing")
    shutil.copytree(alone / "landing", together / "landing")
    folder.mkdir()
    with cluster(folder) as (address, conf):
        command = [sys.executable, str(Path(__file__).with_name("stages_on_spark.py")), DAY, "local[2]", str(alone), address, str(together)]
        variables = {**os.environ, "PYTHONPATH": str(REPO), "SPARK_CONF_DIR": str(conf)}
        done = subprocess.run(command, cwd=REPO, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stderr)
    _, tasks = json.loads(done.stdout.splitlines()[-1])
    assert len(tasks) == 3 and tasks.pop("driver") == 0 and min(tasks.values()) > 10, f"both executors work: {tasks}"
    of_one, of_two = rows(alone), rows(together)
    assert {name: len(found) for name, found in of_two.items()} == {name: len(found) for name, found in of_one.items()}
    assert of_two == of_one
    assert {json.loads(row)["scope"] for row in of_one["duplicates"]} >= {"exact", "near"}
