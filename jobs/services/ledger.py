"""The cost ledger: FOCUS charge rows of every attempt, one per phase, failed and killed attempts too.

An attempt leaves a journal file while it runs (its heartbeat is the file's modification time). A process that dies without writing its
rows is found by the next ``reconcile`` and charged until its last heartbeat and the one it owed, so nothing is free. Corrections are new rows.
Change here: attempts, their phases and journal. Not here: what a row says (charges.py), what Airflow and Ray know of killed attempts (reconciling.py).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.config import PHASES
from jobs.environment import Environment, Resources
from jobs.services import charges, delta, process_identity

_HEARTBEAT_SECONDS = 2.0
_SILENT_SECONDS = 180.0  # an attempt of another machine or container without a heartbeat for so long is dead (a shared file system tells times late)


@dataclass(frozen=True)
class Attempt:
    """One try of one task. ``dag_id`` and the rest are None or -1 when a stage is run by hand."""

    stage: str
    recipe: str
    run_key: str
    interval: str | None
    resources: Resources
    started_at: float
    dag_id: str | None = None
    dag_run_id: str | None = None
    task_id: str | None = None
    map_index: int = -1
    try_number: int = 1
    attempt_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    pid: int = field(default_factory=os.getpid)
    process_started_at: str = ""  # of process_identity: no time of day
    place: str = ""  # of process_identity: where the pid means something

    @property
    def run_id(self) -> str:
        return self.dag_run_id or f"by-hand-{self.run_key[:8]}"


def journal(env: Environment) -> Path:
    """Folder with one file per attempt that runs, or died."""
    return env.home / "attempts"


class Running:
    """An open attempt: journal, heartbeat, and its charge rows when it ends. Raises MoelineError at once when the sheet has no price for it."""

    def __init__(self, env: Environment, attempt: Attempt) -> None:
        env.prices.hourly(attempt.resources, attempt.started_at)
        self.env = env
        self.attempt = replace(attempt, process_started_at=process_identity.started(os.getpid()), place=process_identity.place())
        self._apart: dict[str, tuple[float, float, float]] = {}  # phase -> began, ended, seconds
        self._file = journal(env) / f"{attempt.attempt_id}.json"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self.attempt)))
        os.replace(temporary, self._file)
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._heartbeat, daemon=True, name="heartbeat")
        self._beat.start()

    def _heartbeat(self) -> None:
        while not self._stop.wait(_HEARTBEAT_SECONDS):
            try:
                os.utime(self._file)
            except FileNotFoundError:
                return

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What runs inside is charged as phase ``name``, not as the stage's own."""
        began = time.time()
        try:
            yield
        finally:
            ended = time.time()
            first, _, spent = self._apart.get(name, (began, began, 0.0))
            self._apart[name] = (first, ended, spent + max(0.0, ended - began))

    def cost_so_far(self) -> float:
        return self.env.prices.allocated(self.attempt.resources, dt.datetime.now(dt.UTC).timestamp() - self.attempt.started_at, self.attempt.started_at)

    def close(
        self, outcome: str, *, error: str | None = None, tokens: int | None = None, flops: float | None = None, mfu: float | None = None,
        forecast_id: str | None = None,
    ) -> float:  # fmt: skip
        """Write the charge rows; returns what was charged."""
        self._stop.set()
        more = {"x_Mfu": mfu, "x_ForecastId": forecast_id}
        now = dt.datetime.now(dt.UTC).timestamp()
        rows = charge_rows(self.env, self.attempt, now, outcome, self._apart, error=error, tokens=tokens, flops=flops, more=more)
        delta.append(self.env, "costs", rows, once=self.attempt.attempt_id)
        self._file.unlink(missing_ok=True)
        return float(sum(row["BilledCost"] for row in rows))


def charge_rows(
    env: Environment, attempt: Attempt, ended_at: float, outcome: str, apart: dict[str, tuple[float, float, float]], *, error: str | None = None,
    tokens: int | None = None, flops: float | None = None, more: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row per phase: ``apart`` (phase -> began, ended, seconds) and, first, the stage's own with the rest of the attempt's seconds."""
    total = max(0.0, ended_at - attempt.started_at)
    spent = min(total, sum(seconds for _, _, seconds in apart.values()))
    own = charge_row(env, attempt, ended_at, outcome, error=error, tokens=tokens, flops=flops, seconds=total - spent, more=more)
    scale = spent / sum(s for _, _, s in apart.values()) if spent else 0.0
    others = [
        charge_row(env, replace(attempt, started_at=began), ended, outcome, phase=phase, seconds=seconds * scale, more=more)
        for phase, (began, ended, seconds) in apart.items()
    ]
    return [own, *(others if scale else ())]


def charge_row(
    env: Environment, attempt: Attempt, ended_at: float, outcome: str, *, error: str | None = None, tokens: int | None = None, flops: float | None = None,
    phase: str | None = None, seconds: float | None = None, evidence: str = "own", more: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The row of one phase (None: the stage's own) of ``attempt`` ending at ``ended_at`` (Unix seconds); ``seconds`` of it are charged (None: all)."""
    phase = phase or PHASES[attempt.stage]
    end = max(ended_at, attempt.started_at)
    return charges.row(env, charges.Charge(
        held=attempt.resources, start=attempt.started_at, end=end, seconds=end - attempt.started_at if seconds is None else seconds, stage=attempt.stage,
        phase=phase, description=f"{attempt.stage} {attempt.interval or attempt.recipe}, try {attempt.try_number}" + (", checks" if phase == "checks" else ""),
        attempt_id=attempt.attempt_id, recipe=attempt.recipe, outcome=outcome, evidence=evidence,
        own={
            "x_RunKey": attempt.run_key, "x_Interval": attempt.interval, "x_DagId": attempt.dag_id, "x_DagRunId": attempt.dag_run_id,
            "x_TaskId": attempt.task_id, "x_MapIndex": attempt.map_index, "x_TaskTry": attempt.try_number, "x_Tokens": tokens, "x_Flops": flops,
            "x_Error": error, "x_RunId": attempt.run_id, "x_ProcessId": attempt.pid, **(more or {}),
        },
    ))  # fmt: skip


def open_attempts(env: Environment) -> list[tuple[Attempt, float, bool]]:
    """Attempts without rows yet: (attempt, last heartbeat, whether its process lives)."""
    found = []
    for file in sorted(journal(env).glob("*.json")):
        try:
            raw = json.loads(file.read_text())
            last_seen = file.stat().st_mtime
        except (FileNotFoundError, json.JSONDecodeError):
            continue  # closed meanwhile
        attempt = Attempt(**{**raw, "resources": Resources(**raw["resources"])})
        found.append((attempt, last_seen, _lives(attempt, last_seen)))
    return found


def _lives(attempt: Attempt, last_seen: float) -> bool:
    """Whether the attempt's process runs: asked of the kernel where its pid is one of ours, else by its heartbeat (another machine, another pod)."""
    if attempt.place in ("", process_identity.place()):
        return process_identity.is_running(attempt.pid, str(attempt.process_started_at))
    return time.time() - last_seen < _SILENT_SECONDS


def reconcile(env: Environment) -> list[str]:
    """Charge attempts whose process died without a row, until the heartbeat it still owed; returns their ids."""
    charged = []
    for attempt, last_seen, alive in open_attempts(env):
        if alive:
            continue
        ended = min(last_seen + _HEARTBEAT_SECONDS, max(last_seen, time.time()))
        error = "the process ended without saying why (killed, or the machine stopped)"
        delta.append(env, "costs", [charge_row(env, attempt, ended, "killed", error=error, evidence="heartbeat")], once=attempt.attempt_id)
        (journal(env) / f"{attempt.attempt_id}.json").unlink(missing_ok=True)
        charged.append(attempt.attempt_id)
    return charged
