"""Stages run as processes of their own on a running platform's engines, on tables of their own; what they wrote, to compare."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from expectations.tables import TABLES
from jobs.config import WRITERS
from jobs.contract import StageResult
from jobs.environment import GIVEN, REPO, Environment
from jobs.services import delta

VOLATILE = {"landed_at", "registered_at"}


class Places:
    """Makes environments with their own tables on a platform's engines; each gets a copy of ``corpus``, or, ``beside`` another, shares its tables."""

    def __init__(self, platform: Environment, corpus: Path, root: Path) -> None:
        self.platform, self.corpus, self.root = platform, corpus, root

    def __call__(self, name: str, beside: Environment | None = None) -> Environment:
        toml, home = self.root / f"{name}.toml", self.root / name
        addresses = {k: v for k, v in self.platform.platform.items() if k in GIVEN and k != "postgres_url"}
        settings = (REPO / "infra/env/local.toml").read_text() + "".join(f"{k} = {json.dumps(v)}\n" for k, v in addresses.items())
        for path in ("warehouse", "landing", "artifacts") if beside else ():
            settings = settings.replace(f'{path} = "{path}"', f'{path} = "{beside.home / path}"')
        toml.write_text(settings)
        if beside is None:
            shutil.copytree(self.corpus, home / "landing")
        return Environment.load(str(toml), home)


def command(env: Environment, stage: str, day: str | None, *more: str) -> tuple[list[str], dict[str, str]]:
    arguments = [sys.executable, "-m", "jobs.run", stage, "--recipe", "smoke", *(["--interval", day] if day else []), *more]
    toml = env.home.parent / f"{env.name}.toml"
    return arguments, {**os.environ, "MOELINE_HOME": str(env.home), "MOELINE_ENV": str(toml) if toml.exists() else env.name}


def run(env: Environment, stage: str, day: str | None = None, *more: str) -> StageResult:
    arguments, variables = command(env, stage, day, *more)
    done = subprocess.run(arguments, cwd=REPO, env=variables, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return StageResult.from_json(done.stdout.strip().splitlines()[-1])


def start(env: Environment, stage: str, day: str | None, *more: str) -> subprocess.Popen[str]:
    arguments, variables = command(env, stage, day, *more)
    return subprocess.Popen(arguments, cwd=REPO, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill_at_random(env: Environment, stage: str, day: str | None, usual_seconds: float, luck: random.Random, *more: str) -> bool:
    """Start a stage and SIGKILL its process group; whether it was still running then."""
    arguments, variables = command(env, stage, day, *more)
    process = subprocess.Popen(arguments, cwd=REPO, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
    deadline = time.monotonic() + luck.uniform(0.2, 0.9) * usual_seconds
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


def table_rows(env: Environment, names: Iterable[str], without: Collection[str] = VOLATILE) -> dict[str, list[dict[str, Any]]]:
    """Rows of tables in a comparable order, without the columns that no two runs share (times, paths, versions of services)."""
    found = {}
    for name in names:
        rows = [{k: v for k, v in row.items() if k not in without} for row in delta.rows(env, name)]
        found[name] = sorted(rows, key=lambda r: json.dumps(r, default=str, sort_keys=True))
    return found


def written_by(stages: Sequence[str]) -> list[str]:
    """Tables that these stages write by day."""
    return [name for name, stage in WRITERS.items() if stage in stages and TABLES[name].partition == "interval"]
