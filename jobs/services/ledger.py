"""The cost ledger: one FOCUS charge row per attempt, failed and killed ones too.

An attempt leaves a journal file while it runs (its heartbeat is the file's modification time). A process that dies without writing
its row is found by the next ``reconcile`` and charged until its last heartbeat, so nothing is free. Corrections are new rows.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import threading
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.config import PHASES
from jobs.environment import Environment, Resources
from jobs.services import delta

_HEARTBEAT_SECONDS = 2.0


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
    process_started_at: float = 0.0


def _journal(env: Environment) -> Path:
    return env.home / "attempts"


class Running:
    """An open attempt: journal, heartbeat, and the single charge row when it ends."""

    def __init__(self, env: Environment, attempt: Attempt) -> None:
        import psutil

        self.env = env
        self.attempt = replace(attempt, process_started_at=psutil.Process().create_time())
        self._file = _journal(env) / f"{attempt.attempt_id}.json"
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

    def cost_so_far(self) -> float:
        return self.env.prices.allocated(self.attempt.resources, dt.datetime.now(dt.UTC).timestamp() - self.attempt.started_at)

    def close(self, outcome: str, *, error: str | None = None, tokens: int | None = None, flops: float | None = None) -> float:
        """Write the charge row; returns what was charged."""
        self._stop.set()
        row = charge_row(self.env, self.attempt, dt.datetime.now(dt.UTC).timestamp(), outcome, error=error, tokens=tokens, flops=flops)
        delta.append(self.env, "costs", [row], once=self.attempt.attempt_id)
        self._file.unlink(missing_ok=True)
        return float(row["BilledCost"])


def charge_row(
    env: Environment, attempt: Attempt, ended_at: float, outcome: str, *, error: str | None = None, tokens: int | None = None, flops: float | None = None
) -> dict[str, Any]:
    """A FOCUS 1.3 usage row for ``attempt`` ending at ``ended_at`` (Unix seconds), priced by the environment's list prices."""
    start, end = (dt.datetime.fromtimestamp(t, dt.UTC) for t in (attempt.started_at, max(ended_at, attempt.started_at)))
    seconds = (end - start).total_seconds()
    cost = env.prices.allocated(attempt.resources, seconds)
    month = start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return {
        "BilledCost": cost, "EffectiveCost": cost, "ListCost": cost, "ContractedCost": cost,
        "BillingAccountId": env.name, "BillingAccountName": env.name, "BillingCurrency": env.prices.currency,
        "BillingPeriodStart": month, "BillingPeriodEnd": (month + dt.timedelta(days=32)).replace(day=1), "ChargePeriodStart": start, "ChargePeriodEnd": end,
        "ChargeCategory": "Usage", "ChargeClass": None, "ChargeDescription": f"{attempt.stage} {attempt.interval or attempt.recipe}, try {attempt.try_number}",
        "InvoiceIssuerName": env.name, "PricingQuantity": attempt.resources.cores * seconds / 3600, "PricingUnit": "core-hours",
        "ServiceProviderName": env.name, "ProviderName": env.name, "PublisherName": env.name,
        "ServiceCategory": "AI and Machine Learning", "ServiceName": f"moeline {attempt.stage}",
        "x_AttemptId": attempt.attempt_id, "x_RunKey": attempt.run_key, "x_Recipe": attempt.recipe, "x_Stage": attempt.stage,
        "x_Phase": PHASES[attempt.stage], "x_Interval": attempt.interval, "x_DagId": attempt.dag_id, "x_DagRunId": attempt.dag_run_id,
        "x_TaskId": attempt.task_id, "x_MapIndex": attempt.map_index, "x_TaskTry": attempt.try_number, "x_Outcome": outcome, "x_WallSeconds": seconds,
        "x_Cores": attempt.resources.cores, "x_MemoryGib": attempt.resources.memory_gib, "x_Gpus": attempt.resources.gpus,
        "x_EnergyKwh": env.prices.energy_kwh(attempt.resources, seconds), "x_Tokens": tokens, "x_Flops": flops, "x_Error": error,
    }  # fmt: skip


def _alive(attempt: Attempt) -> bool:
    """Whether the very process of the attempt still runs (a reused pid has another start time)."""
    import psutil

    try:
        return abs(psutil.Process(attempt.pid).create_time() - attempt.process_started_at) < 1.0
    except psutil.Error:
        return False


def reconcile(env: Environment) -> list[str]:
    """Charge attempts whose process died without a row, until their last heartbeat; returns their ids."""
    charged = []
    for file in sorted(_journal(env).glob("*.json")):
        try:
            raw = json.loads(file.read_text())
            last_seen = file.stat().st_mtime
        except (FileNotFoundError, json.JSONDecodeError):
            continue  # closed meanwhile
        attempt = Attempt(**{**raw, "resources": Resources(**raw["resources"])})
        if _alive(attempt):
            continue
        row = charge_row(env, attempt, last_seen, "killed", error="the process ended without saying why (killed, or the machine stopped)")
        delta.append(env, "costs", [row], once=attempt.attempt_id)
        file.unlink(missing_ok=True)
        charged.append(attempt.attempt_id)
    return charged
