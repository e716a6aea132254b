"""What Airflow and Ray know of attempts that the ledger does not: tries without a row, and killed ones that held their machine for longer.

Change here: which of their records count, and how. Not here: heartbeats of our own (ledger.py), what a correction says (charges.py).

A killed attempt is charged until its last heartbeat first. Where Airflow gave the slot of that try back later, or Ray's record of jobs ends its
driver (the same process) later, the difference is a correction. A try that Airflow saw fail and that left no row at all, because it was killed
before its attempt began or its journal is lost, is charged from Airflow's start to its end. A try that succeeded without a row found its work
recorded: it is not charged, as it is said everywhere.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.config import STAGES
from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import charges, delta, ledger, shared_costs

DAGS = ("prepare_corpus", "build_model")
_OVER = ("failed", "up_for_retry", "upstream_failed", "removed", "skipped", "restarting")
_LEAST_SECONDS = 1.0
Key = tuple[str, str, str, int, int]


@dataclass(frozen=True)
class Try:
    """One try of one task as Airflow recorded it; times in Unix seconds."""

    dag_id: str
    dag_run_id: str
    task_id: str
    map_index: int
    try_number: int
    state: str
    started_at: float
    ended_at: float
    recipe: str = "unknown"

    @property
    def key(self) -> Key:
        return (self.dag_id, self.dag_run_id, self.task_id, self.map_index, self.try_number)


@dataclass(frozen=True)
class Driver:
    """A process that spoke to Ray, as Ray's head recorded it."""

    pid: int
    started_at: float
    ended_at: float


def reconcile(env: Environment, *, now: float | None = None) -> dict[str, Any]:
    """Everything: heartbeats, Airflow, Ray, idle time, storage. Returns the number of new rows and dollars of each, and what could not be asked."""
    now = time.time() if now is None else now
    closed = ledger.reconcile(env)
    missing, tries, drivers = [], [], []
    if env.platform.get("airflow_url"):
        tries = airflow_tries(env)
    else:
        missing.append("Airflow is not up, so its tries were not compared with the ledger (moeline up)")
    if env.platform.get("ray_address"):
        from jobs.services import ray_connection

        drivers = [Driver(**d) for d in ray_connection.ended_drivers(env)]
    else:
        missing.append("Ray is not up, and its head forgets when it stops, so its drivers were not compared")
    if "platform" not in env.resources:
        missing.append(f"idle time has no price: set [resources.platform] (what the machine holds) in {env.prices.sheet}")
    if env.prices.storage_gib_month is None:
        missing.append(f"storage has no price: set storage_gib_month in [prices] of {env.prices.sheet}")
    added = {
        "unseen": charge_unseen(env, tries), "corrected": correct_killed(env, tries, drivers), "idle": shared_costs.charge_idle(env, now=now),
        "storage": shared_costs.charge_storage(env, now=now),
    }  # fmt: skip
    counted = {name: {"rows": len(rows), "usd": sum(r["BilledCost"] for r in rows)} for name, rows in added.items()}
    return {"killed": len(closed), **counted, "missing": missing}


def charge_unseen(env: Environment, tries: Iterable[Try]) -> list[dict[str, Any]]:
    """Rows for tries that failed in Airflow and have no row of their own."""
    known = {_key(r) for r in delta.rows(env, "costs")}
    known |= {(a.dag_id, a.dag_run_id, a.task_id, a.map_index, a.try_number) for a, _, _ in ledger.open_attempts(env)}
    found = []
    for one in tries:
        if one.key in known or one.state not in _OVER or one.task_id not in STAGES or one.ended_at <= one.started_at:
            continue
        attempt = ledger.Attempt(
            one.task_id, one.recipe, "", None, env.stage_resources(one.task_id), one.started_at, one.dag_id, one.dag_run_id, one.task_id, one.map_index,
            one.try_number, attempt_id="airflow:" + ":".join(map(str, one.key)), pid=0,
        )  # fmt: skip
        error = f"Airflow saw this try end as {one.state}; it left no row of its own (killed before it began to work, or its journal is lost)"
        own = {"x_RunKey": None, "x_ProcessId": None, "x_RunId": one.dag_run_id}
        row = ledger.charge_row(env, attempt, one.ended_at, "killed", error=error, evidence="airflow", more=own)
        delta.append(env, "costs", [row], once=attempt.attempt_id)
        found.append(row)
    return found


def correct_killed(env: Environment, tries: Sequence[Try], drivers: Sequence[Driver]) -> list[dict[str, Any]]:
    """Corrections for killed attempts that Airflow or Ray saw end later than the ledger did."""
    attempts: dict[str, list[dict[str, Any]]] = {}
    for row in delta.rows(env, "costs"):
        if row["x_Outcome"] == "killed" and row["x_Evidence"] != "own":  # one that wrote its own row knew when it ended
            attempts.setdefault(row["x_AttemptId"], []).append(row)
    of_try = {one.key: one for one in tries}
    found = []
    for attempt_id, rows in attempts.items():
        first = min(rows, key=lambda r: r["ChargePeriodStart"])
        start, end = first["ChargePeriodStart"].timestamp(), max(r["ChargePeriodEnd"] for r in rows).timestamp()
        seen = [("ray", d.ended_at) for d in drivers if d.pid == first["x_ProcessId"] and start - 1 <= d.started_at <= end + 1]
        seen += [("airflow", t.ended_at)] if (t := of_try.get(_key(first))) is not None else []
        evidence, known = max(seen, key=lambda s: s[1], default=("", 0.0))
        if known - end > _LEAST_SECONDS:
            last = max(rows, key=lambda r: r["ChargePeriodEnd"])
            row = charges.correction(env, {**first, "ChargePeriodEnd": last["ChargePeriodEnd"]}, known - end, f"{evidence} saw it end later", evidence)
            delta.append(env, "costs", [row], once=f"correct:{attempt_id}:{end:.3f}")
            found.append(row)
    return found


def correct(env: Environment, attempt_id: str, seconds: float, because: str) -> dict[str, Any]:
    """A correction by hand: ``attempt_id`` (or its beginning) held its machine for ``seconds`` in all."""
    rows = [r for r in delta.rows(env, "costs") if r["x_AttemptId"].startswith(attempt_id)]
    if len(names := {r["x_AttemptId"] for r in rows}) != 1:
        raise MoelineError(f"{attempt_id!r} names {len(names)} attempts of the table costs. Give the whole x_AttemptId; an export lists them.")
    if seconds < 0 or not because.strip():
        raise MoelineError("A correction needs the seconds the attempt really took (0 or more) and a reason: --seconds S --because TEXT.")
    main = max((r for r in rows if not r["x_CorrectsId"]), key=lambda r: r["x_WallSeconds"])
    row = charges.correction(env, main, seconds - sum(r["x_WallSeconds"] for r in rows), because.strip()[:200], "by hand")
    delta.append(env, "costs", [row])
    return row


def _key(row: Mapping[str, Any]) -> Any:
    return (row["x_DagId"], row["x_DagRunId"], row["x_TaskId"], row["x_MapIndex"], row["x_TaskTry"])


def airflow_tries(env: Environment) -> list[Try]:
    """Every ended try of a task that failed or was tried again, of the DAGs that run stages."""
    from jobs.services.airflow import AirflowClient

    found = []
    with AirflowClient(env) as client:
        for dag_id in DAGS:
            for run in client.dag_runs(dag_id):
                recipe = (run.get("conf") or {}).get("recipe") or "unknown"
                for task in client.task_instances(dag_id, run["dag_run_id"]):
                    if task["task_id"] in STAGES and (task["state"] != "success" or (task["try_number"] or 0) > 1):
                        tried = client.task_tries(dag_id, run["dag_run_id"], task["task_id"])
                        found += [t for raw in tried if (t := ended_try(raw, recipe)) is not None]
    return found


def ended_try(raw: Mapping[str, Any], recipe: str = "unknown") -> Try | None:
    """A try as Airflow's REST API describes it; None while it runs or where it never started."""
    if not raw.get("start_date") or not raw.get("end_date"):
        return None
    start, end = (dt.datetime.fromisoformat(str(raw[name]).replace("Z", "+00:00")).timestamp() for name in ("start_date", "end_date"))
    return Try(raw["dag_id"], raw["dag_run_id"], raw["task_id"], int(raw["map_index"]), int(raw["try_number"]), str(raw["state"]), start, end, recipe)
