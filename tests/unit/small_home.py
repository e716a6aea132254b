"""A small home with something of everything a backup copies, and something of what it does not."""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs import backup, restore
from jobs.contract import StageResult, TableVersion
from jobs.environment import Environment
from jobs.services import delta, ledger, results

DAYS = ("2026-01-01", "2026-01-02")
NEWEST = {DAYS[0]: 5, DAYS[1]: 2}  # rows by day of the table fingerprints, at its newest version


def publish(env: Environment, day: str, rows: int, staging: Path | None = None) -> TableVersion:
    """Replace a day of the table ``fingerprints``, by way of a folder in ``staging`` (default: that of no attempt)."""
    folder = (staging or env.warehouse / "_staging") / f"{day}-{rows}-{os.urandom(4).hex()}"
    folder.mkdir(parents=True)
    columns = {"band": pa.array(range(rows), pa.int32()), "hash": pa.array(range(rows), pa.int64()), "doc_id": [str(k) for k in range(rows)]}
    pq.write_table(pa.table(columns), folder / "part-0.parquet")
    return delta.publish(env, "fingerprints", folder, partition_value=day, metadata={"rows": rows})


def rows_by_day(env: Environment, version: TableVersion) -> dict[str, int]:
    found = delta.dataset(env, version).to_table(columns=["interval"]).column(0).to_pylist()
    return {day: found.count(day) for day in sorted(set(found))}


def result(version: TableVersion, day: str) -> StageResult:
    return StageResult(
        stage="deduplicate", run_key=f"key-{day}", recipe="tiny", interval=day, inputs={}, outputs={version.name: str(version)}, metrics={},
        config_hash="c", cost_usd=0.0, wall_seconds=1.0, code_revision="r", finished_at="2026-01-03T00:00:00Z",
    )  # fmt: skip


def checkpoint(env: Environment, step: int, key: str = "k1") -> Path:
    folder = env.artifacts / "checkpoints" / key / f"step-{step:010d}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(5000))
    (folder / "state.json").write_text(json.dumps({"step": step}))
    return folder


def write(file: Path, content: str, mode: int = 0o644) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    file.chmod(mode)
    return file


def by_hand(env: Environment) -> Any:
    return sqlite3.connect(env.home / "mlflow-by-hand.db")


def attempt(env: Environment, name: str, *, pid: int, process_started_at: str = "") -> Path:
    """The journal of an attempt at the stage ``clean`` by a process."""
    journaled = ledger.Attempt("clean", "tiny", "k", DAYS[0], env.stage_resources("clean"), 1_699_999_000.0, attempt_id=name, pid=pid)
    file = ledger.journal(env) / f"{name}.json"
    write(file, json.dumps(asdict(replace(journaled, process_started_at=process_started_at))))
    return file


def make(folder: Path) -> Environment:
    """The home itself: three versions of ``fingerprints``, results, a checkpoint, keys, a landed file, MLflow's database of work by hand."""
    env = Environment.load("local", folder)
    for day, rows in zip(DAYS, (3, 2), strict=True):
        results.record(env, result(publish(env, day, rows), day))
    publish(env, DAYS[0], 5)
    delta.append(env, "checks", [{"run_key": "k", "rule": "r", "passed": True}])
    checkpoint(env, 10)
    write(env.artifacts / "checkpoints" / "k1" / "writer.lock", "")
    write(env.artifacts / "checkpoints" / "k1" / ".unfinished-1" / "model.safetensors", "half")
    write(env.landing / "prose" / DAYS[0] / "a.jsonl", '{"text": "words"}\n')
    write(env.landing / "prose" / DAYS[0] / ".b.jsonl", "being written")
    (env.landing / "prose" / DAYS[0] / "link.jsonl").symlink_to("/etc/hostname")
    for name in ("keys/model-signing.pem", "airflow/passwords.json", "airflow/keys/fernet", "mlflow/password"):
        write(env.home / name, f"secret of {name}", 0o600)
    write(env.home / "recipes" / "mine.json", "{}")
    died = attempt(env, "a1", pid=0)
    os.utime(died, (1_700_000_000, 1_700_000_000))
    for name in ("logs/stage.log", "platform.json", "locks/x.lock", "progress/p.json", "spark/token", "evaluations/cache", "warehouse/_staging/a/part.parquet"):
        write(env.home / name, "{}")
    with by_hand(env) as database:
        database.execute("CREATE TABLE experiments (name TEXT, artifact_location TEXT)")
        places = [f"{(env.artifacts / 'mlflow').as_uri()}", "mlflow-artifacts:/1", f"{env.artifacts.as_uri()}-of-another/mlflow"]
        database.executemany("INSERT INTO experiments VALUES ('e', ?)", [(place,) for place in places])
    return env


def taken(env: Environment, **options) -> Path:
    return Path(backup.backup(env, env.home.parent / "backups", **options)["folder"])


def put_back(folder: Path, name: str = "new") -> Environment:
    env = Environment.load("local", folder.parent.parent / "elsewhere" / name)
    restore.restore(env, folder)
    return env
