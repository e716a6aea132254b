"""What a stage gets besides config and inputs (jobs.contract.Tools), on this environment's engines."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jobs.budget import Spending
from jobs.contract import StageResult, TableVersion
from jobs.environment import Environment
from jobs.services import results
from jobs.services.ledger import Running
from jobs.services.locks import locked
from jobs.services.results import write_whole


class StageTools:
    """One attempt's tools. ``scratch`` lies inside the warehouse's staging area, so that Spark's workers see it too."""

    def __init__(self, env: Environment, running: Running, *, gauntlet_data: str | None = None, inputs_read: Mapping[str, str] | None = None) -> None:
        self.env = env
        self.running = running
        self.interval = running.attempt.interval
        self.recipe = running.attempt.recipe
        self.run_key = running.attempt.run_key
        self.gauntlet_data = gauntlet_data
        self.inputs_read: Mapping[str, str] = inputs_read or {}
        self.staging = env.warehouse / "_staging" / running.attempt.attempt_id
        self.scratch = str(self.staging / "_scratch")
        self._held = ExitStack()
        self._held.enter_context(locked(env, attempt_lock(running.attempt.attempt_id)))  # before there is a folder: `moeline gc` removes those of nobody
        Path(self.scratch).mkdir(parents=True, exist_ok=True)
        self.spending: Spending | None = None  # of a training; None: no budget stops it
        self._spark: Any = None
        self._tracker: Any = None
        self._materialised = 0
        self._started = time.monotonic()
        self._last_line = float("-inf")

    @property
    def spark(self) -> Any:
        if self._spark is None:
            from jobs.services import spark

            self._spark = spark.session(self.env, f"moeline {self.running.attempt.stage} {self.interval or self.recipe}")
        return self._spark

    @property
    def tracker(self) -> Any:
        """The MLflow run of this piece of work (resumed by a retry), or None when no MLflow server is configured."""
        if self._tracker is None and self.env.platform.get("mlflow_uri"):
            from jobs.services import mlflow

            self._tracker = mlflow.start_or_resume_run(self.env, self.run_key, self.recipe, self.running.attempt.stage)
        return self._tracker

    def materialise(self, frame: Any) -> Any:
        self._materialised += 1
        target = str(Path(self.scratch) / f"materialised-{self._materialised}")
        frame.write.mode("overwrite").parquet(target)
        return self.spark.read.schema(frame.schema).parquet(target)

    def progress(self, done: float, total: float, text: str = "") -> None:
        elapsed = time.monotonic() - self._started
        share = min(1.0, done / total) if total > 0 else 0.0
        eta = elapsed * (1 - share) / share if share > 0.01 else None
        finished = share >= 1.0
        if not finished and elapsed - self._last_line < 2.0:
            return
        self._last_line = elapsed
        ending = "" if eta is None else f", ETA {eta:.0f} s"
        print(f"[{self.running.attempt.stage}] {share:4.0%} {elapsed:.0f} s{ending}, ${self.cost_so_far():.4f}  {text}", file=sys.stderr, flush=True)
        state = {"stage": self.running.attempt.stage, "share": share, "elapsed": elapsed, "eta": eta, "text": text, "cost_usd": self.cost_so_far()}
        name = f"{self.running.attempt.dag_run_id or 'manual'}--{self.running.attempt.stage}.json".replace("/", "_")
        write_whole(self.env.home / "progress" / name, json.dumps(state).encode())

    def artifact_dir(self, name: str) -> str:
        root = self.env.artifacts.resolve()
        target = (root / name).resolve()
        if not target.is_relative_to(root):
            raise ValueError(f"{name!r} leaves the artifact folder")
        target.mkdir(parents=True, exist_ok=True)
        return str(target)

    def put_once(self, name: str, make: Callable[[], bytes]) -> bytes:
        file = self.env.artifacts / name
        with locked(self.env, f"artifact--{name}"):
            if not file.is_file():
                write_whole(file, make())
            return file.read_bytes()

    def cost_so_far(self) -> float:
        return self.running.cost_so_far()

    def price(self, *, core_seconds: float = 0.0, gib_seconds: float = 0.0, gpu_seconds: float = 0.0) -> float:
        return self.env.prices.cost(core_seconds=core_seconds, gib_seconds=gib_seconds, gpu_seconds=gpu_seconds)

    def stage_price(self, stage: str, seconds: float) -> float:
        """Dollars ``stage`` would cost for ``seconds`` with the resources this environment gives it."""
        return self.env.prices.allocated(self.env.stage_resources(stage), seconds)

    def lock(self, name: str) -> Any:
        """A context manager: one holder at a time among the processes of this warehouse."""
        return locked(self.env, name)

    def lineage(self) -> dict[str, StageResult]:
        """The recorded results this attempt's inputs come from, by stage, followed back to the corpus (newest per stage)."""
        found: dict[str, StageResult] = {}
        waiting = [v for v in self.inputs_read.values() if "@" in v]
        while waiting:
            result = results.writer_of(self.env, TableVersion.parse(waiting.pop()))
            if result.stage not in found:
                found[result.stage] = result
                waiting += [v for v in result.inputs.values() if "@" in v]
        return found

    def close(self) -> None:
        """Drop the scratch space (and what is left of the staging area). Engines of the platform keep running."""
        import shutil

        if self._spark is not None:
            self._spark.stop()
        shutil.rmtree(self.staging, ignore_errors=True)
        self._held.close()


def attempt_lock(attempt_id: str) -> str:
    """Name of the lock that an attempt holds as long as its working folder is its own."""
    return f"attempt--{attempt_id}"


def process_name(stage: str) -> None:
    """Show the stage in ps and top."""
    try:
        import setproctitle

        setproctitle.setproctitle(f"moeline {stage} [{os.getpid()}]")
    except ImportError:
        pass
