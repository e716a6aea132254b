"""moeline gc --history DAYS: what only tells of work that ended long ago goes, so that a platform that has run for years is no larger than its data.

What anybody decides or pays by stays for ever: published rows, recorded results, costs, checks, models, MLflow's runs.
Change here: what is history, and where it lies. Not here: what dead processes left (gc.py), Airflow's own tables (infra/local/airflow_history.py).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from expectations.tables import TABLES
from jobs.environment import REPO, Environment
from jobs.services import locks, table_files, table_store
from jobs.services.results import write_whole

if TYPE_CHECKING:
    from jobs.gc import Found

LARGEST_LOG_BYTES, TAIL_BYTES = 20_000_000, 1_000_000  # of a service that has been up for long: a log is cut to its tail when it is larger


def clear(env: Environment, found: Found, before: float) -> None:
    """Remove what ended before ``before`` (Unix seconds), or count it."""
    from jobs.services.platform import services

    _airflow(env, found, before)
    _old_files(env.home / "logs" / "airflow", "task logs", found, before)
    _old_files(env.home / "progress", "progress of tasks", found, before)
    for session in (services.runtime_folder(env.home) / "ray").glob("session_*/logs") if (env.home / "ray").is_dir() else ():
        _old_files(session, "logs of Ray's workers", found, before)
    _service_logs(env.home / "logs", found)
    for name, table in TABLES.items():
        if not table.partition:
            _replaced_files(env, name, found, before)


def _airflow(env: Environment, found: Found, before: float) -> None:
    """Airflow's runs and tries. What they say of costs is asked for first: afterwards a try that nobody charged would be free."""
    from jobs.services import reconciling
    from jobs.services.platform import services
    from jobs.services.platform.processes import MARK

    home = env.home / "airflow"
    if not (home / "airflow.cfg").is_file():
        found.kept.append(f"Airflow's runs: its settings are not in {home}. Where Airflow runs: airflow db clean")
        return
    if env.platform.get("airflow_url") and not found.dry_run:
        reconciling.reconcile(env)
    when = dt.datetime.fromtimestamp(before, dt.UTC).isoformat()
    command = [sys.executable, "-m", "infra.local.airflow_history", when, *(["--dry-run"] if found.dry_run else [])]
    variables = {**services.common_variables(env), "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LAZY_LOAD_PLUGINS": "True"}
    del variables[MARK]  # no service
    done = subprocess.run(command, env=variables, cwd=REPO, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        found.kept.append(f"Airflow's runs: {reason[:300]}. Is the platform up? (moeline up)")
        return
    told = json.loads(done.stdout.strip().splitlines()[-1])
    if told["runs"]:
        found.counts["runs in Airflow"] = told["runs"]


def _old_files(root: Path, kind: str, found: Found, before: float) -> None:
    """Files last written before ``before``, and folders that are empty then."""
    for folder, _, names in os.walk(root, topdown=False):
        for file in (Path(folder) / name for name in names):
            with contextlib.suppress(FileNotFoundError):
                if file.lstat().st_mtime < before:
                    found.remove(kind, file)
        if not found.dry_run and Path(folder) != root:
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(folder)


def _service_logs(folder: Path, found: Found) -> None:
    """Cut the logs of services to their ends, in ``NAME.log.1``; a line written at that moment may be lost."""
    for file in sorted(folder.glob("*.log")):
        size = file.stat().st_size
        if size <= LARGEST_LOG_BYTES:
            continue
        found.counts["logs of services"] = found.counts.get("logs of services", 0) + 1
        found.bytes += size - TAIL_BYTES
        if not found.dry_run:
            with file.open("rb+") as log:  # the service has it open, to append: a new file would not be written to
                log.seek(-TAIL_BYTES, os.SEEK_END)
                write_whole(file.with_name(f"{file.name}.1"), log.read().split(b"\n", 1)[-1])
                log.truncate(0)


def _replaced_files(env: Environment, name: str, found: Found, before: float) -> None:
    """Files of an append-only table whose rows are all in a file that replaced them before ``before``."""
    root = table_store.root(env, name)
    with locks.not_in_use(locks.held_file(env, "forget")) as alone:  # a backup copies older versions too
        if not alone:
            found.kept.append(f"older versions of {name}: a backup or `moeline forget` is running")
            return
        newest = table_files.newest(root) if table_store.is_there(root) else None
        for file, removed_at in sorted(newest.removed_at.items()) if newest else ():
            if removed_at < before and (root / file).is_file():
                found.remove(f"files of {name} that were joined", root / file)
