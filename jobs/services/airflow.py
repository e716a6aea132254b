"""The REST client of the running Airflow (3.3, API v2): what `moeline run`, `backfill` and `approve` need, nothing else.

Change here: which calls of Airflow's API moeline makes. Not here: starting Airflow (jobs/services/platform), what the DAGs do (dags/).
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from jobs.contract import MoelineError
from jobs.environment import Environment

_GATEWAY_ERRORS = {502, 503, 504}  # 503 is also Airflow's answer while a backfill cannot take its database lock
_ATTEMPTS = 4
_PAGE = 100  # Airflow's own [api] maximum_page_limit


class AirflowClient:
    """One signed-in session with the Airflow of ``env``; use as a context manager or call ``close``.

    Every method returns Airflow's JSON (plain dicts) and raises MoelineError, which carries the HTTP ``status`` (0 when
    Airflow did not answer), when the call is refused. Reads are repeated after connection errors; writes only when the
    request cannot have reached Airflow.
    """

    def __init__(self, env: Environment, *, timeout_seconds: float = 30.0) -> None:
        addresses = env.platform
        if not addresses.get("airflow_url"):
            raise MoelineError(f"Airflow was asked for, but no platform is recorded in {env.home}. Start it with: moeline up")
        self.url = str(addresses["airflow_url"]).rstrip("/")
        self._user = addresses.get("airflow_user", "admin")
        self._password_file = Path(addresses["airflow_password_file"])
        self._token: str | None = None
        self._http = httpx.Client(base_url=self.url, timeout=timeout_seconds, trust_env=False, headers={"Accept": "application/json"})

    def __enter__(self) -> AirflowClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- DAGs ---------------------------------------------------------------------------------------------------------

    def dags(self) -> list[dict[str, Any]]:
        """All DAGs Airflow has parsed: ``dag_id``, ``is_paused``, ``has_import_errors``, ``next_dagrun_logical_date`` and more."""
        return self._pages("/dags", "dags", {"exclude_stale": True})

    def dag(self, dag_id: str) -> dict[str, Any]:
        return self._call("GET", f"/dags/{_part(dag_id)}")

    def import_errors(self) -> list[dict[str, Any]]:
        """DAG files that could not be parsed: ``filename`` and ``stack_trace``."""
        return self._pages("/importErrors", "import_errors", {})

    def wait_for_dag(self, dag_id: str, *, timeout_seconds: float = 60.0) -> dict[str, Any]:
        """The DAG once the dag-processor has parsed it; its import error as MoelineError when it cannot be parsed."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            found = next((dag for dag in self.dags() if dag["dag_id"] == dag_id), None)
            if found is not None:
                return found
            errors = self.import_errors()
            if errors or time.monotonic() > deadline:
                detail = "\n".join(f"{error['filename']}: {error['stack_trace'].strip().splitlines()[-1]}" for error in errors)
                raise MoelineError(f"Airflow does not know the DAG {dag_id!r}. {detail or 'No DAG file defines it; look into logs/airflow-dag-processor.log.'}")
            time.sleep(1.0)

    def unpause(self, dag_id: str) -> dict[str, Any]:
        return self._set_paused(dag_id, False)

    def pause(self, dag_id: str) -> dict[str, Any]:
        return self._set_paused(dag_id, True)

    def _set_paused(self, dag_id: str, paused: bool) -> dict[str, Any]:
        return self._call("PATCH", f"/dags/{_part(dag_id)}", params={"update_mask": "is_paused"}, body={"is_paused": paused})

    # -- backfills ----------------------------------------------------------------------------------------------------

    def create_backfill(
        self,
        dag_id: str,
        from_date: dt.date | str,
        to_date: dt.date | str,
        max_active_runs: int = 3,
        reprocess_behavior: str = "none",
        conf: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Airflow's own backfill of the data days ``from_date`` to ``to_date``, both inclusive.

        ``reprocess_behavior``: none (only days without a run) | failed | completed. ``conf`` fills the DAG's params.
        Returns the backfill (``id``, ``completed_at``, ...); raises MoelineError with status 409 while another is active.
        """
        body = {
            "dag_id": dag_id,
            "from_date": _midnight(from_date),
            "to_date": _midnight(to_date),
            "max_active_runs": max_active_runs,
            "reprocess_behavior": reprocess_behavior,
            "dag_run_conf": dict(conf or {}),
        }
        return self._call("POST", "/backfills", body=body)

    def backfill(self, backfill_id: int) -> dict[str, Any]:
        """``completed_at`` is null while runs of the backfill are still active."""
        return self._call("GET", f"/backfills/{int(backfill_id)}")

    def backfills(self, dag_id: str) -> list[dict[str, Any]]:
        return self._pages("/backfills", "backfills", {"dag_id": dag_id, "order_by": "-id"})

    def cancel_backfill(self, backfill_id: int) -> dict[str, Any]:
        """Start no further runs of it and fail the queued ones; tasks already running go on to their end."""
        return self._call("PUT", f"/backfills/{int(backfill_id)}/cancel")

    # -- runs and tasks -----------------------------------------------------------------------------------------------

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None, *, logical_date: str | None = None, run_id: str | None = None) -> dict[str, Any]:
        """Start a run by hand. Without ``logical_date`` the run has no dates at all (asset-scheduled DAGs want that)."""
        body: dict[str, Any] = {"logical_date": logical_date, "conf": dict(conf or {})}
        if run_id is not None:
            body["dag_run_id"] = run_id
        return self._call("POST", f"/dags/{_part(dag_id)}/dagRuns", body=body)

    def dag_run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return self._call("GET", f"/dags/{_part(dag_id)}/dagRuns/{_part(run_id)}")

    def dag_runs(
        self,
        dag_id: str,
        *,
        run_type: str | None = None,
        state: str | None = None,
        logical_date_gte: dt.date | str | None = None,
        logical_date_lte: dt.date | str | None = None,
        order_by: str = "-run_after",
    ) -> list[dict[str, Any]]:
        """Runs of a DAG, newest first; days are inclusive data days. ``dag_id`` "~" means all DAGs."""
        params: dict[str, Any] = {"order_by": order_by, "run_type": run_type, "state": state}
        params["logical_date_gte"] = None if logical_date_gte is None else _midnight(logical_date_gte)
        params["logical_date_lte"] = None if logical_date_lte is None else _midnight(logical_date_lte)
        return self._pages(f"/dags/{_part(dag_id)}/dagRuns", "dag_runs", {key: value for key, value in params.items() if value is not None})

    def set_run_state(self, dag_id: str, run_id: str, state: str) -> dict[str, Any]:
        """Mark a run ``failed`` (stops its running tasks), ``success`` or ``queued``."""
        return self._call("PATCH", f"/dags/{_part(dag_id)}/dagRuns/{_part(run_id)}", params={"update_mask": "state"}, body={"state": state})

    def clear_run(self, dag_id: str, run_id: str, *, only_failed: bool = False) -> dict[str, Any]:
        """Run the tasks of a run again (all, or the failed ones and what follows them)."""
        return self._call("POST", f"/dags/{_part(dag_id)}/dagRuns/{_part(run_id)}/clear", body={"dry_run": False, "only_failed": only_failed})

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Task instances of a run: ``task_id``, ``map_index``, ``state``, ``try_number``, ``start_date``, ``end_date``, ``duration``."""
        return self._pages(f"/dags/{_part(dag_id)}/dagRuns/{_part(run_id)}/taskInstances", "task_instances", {})

    def task_tries(self, dag_id: str, run_id: str, task_id: str) -> list[dict[str, Any]]:
        """Every try of a task, killed ones included."""
        path = f"/dags/{_part(dag_id)}/dagRuns/{_part(run_id)}/taskInstances/{_part(task_id)}/tries"
        return list(self._call("GET", path)["task_instances"])

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """The value a task handed on (a StageResult as JSON for moeline's tasks)."""
        path = f"/dags/{_part(dag_id)}/dagRuns/{_part(run_id)}/taskInstances/{_part(task_id)}/xcomEntries/{_part(key)}"
        return self._call("GET", path, params={"stringify": False})["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int, *, map_index: int = -1) -> str:
        """The log of one try as text, one event per line."""
        path = f"/dags/{_part(dag_id)}/dagRuns/{_part(run_id)}/taskInstances/{_part(task_id)}/logs/{int(try_number)}"
        content = self._call("GET", path, params={"map_index": map_index, "full_content": True})["content"]
        if isinstance(content, str):
            return content
        return "\n".join(line if isinstance(line, str) else _event_text(line) for line in content)

    # -- people in the loop, pools ------------------------------------------------------------------------------------

    def awaiting_input(self) -> list[dict[str, Any]]:
        """Open questions to a person (human-in-the-loop tasks without an answer), over all DAGs."""
        return self._pages("/dags/~/dagRuns/~/hitlDetails", "hitl_details", {"response_received": False})

    def answer(self, dag_id: str, run_id: str, task_id: str, options: list[str], *, map_index: int = -1) -> dict[str, Any]:
        path = f"/dags/{_part(dag_id)}/dagRuns/{_part(run_id)}/taskInstances/{_part(task_id)}/{int(map_index)}/hitlDetails"
        return self._call("PATCH", path, body={"chosen_options": options, "params_input": {}})

    def ensure_pool(self, name: str, slots: int, description: str = "") -> dict[str, Any]:
        """Create the pool, or set its slots when it exists with others."""
        try:
            pool = self._call("GET", f"/pools/{_part(name)}")
        except MoelineError as error:
            if getattr(error, "status", 0) != httpx.codes.NOT_FOUND:
                raise
            return self._call("POST", "/pools", body={"name": name, "slots": slots, "description": description})
        if pool["slots"] == slots:
            return pool
        body = {"pool": name, "slots": slots, "description": pool["description"], "include_deferred": pool["include_deferred"]}
        return self._call("PATCH", f"/pools/{_part(name)}", body=body)

    def health(self) -> dict[str, Any]:
        """Airflow's own view of its scheduler, triggerer, dag-processor and database."""
        return self._call("GET", "/monitor/health")

    # -- transport ----------------------------------------------------------------------------------------------------

    def _pages(self, path: str, key: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while True:
            page = self._call("GET", path, params={**params, "limit": _PAGE, "offset": len(rows)})
            rows += page[key]
            if len(rows) >= (page.get("total_entries") or 0) or not page[key]:
                return rows

    def _call(self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None) -> Any:
        for attempt in range(1, _ATTEMPTS + 1):
            last = attempt == _ATTEMPTS
            try:
                response = self._http.request(method, f"/api/v2{path}", params=params, json=body, headers={"Authorization": f"Bearer {self._sign_in()}"})
            except httpx.TransportError as error:
                # A write whose answer was lost may have happened: only a refused connection proves that it did not.
                if last or (method != "GET" and not isinstance(error, httpx.ConnectError)):
                    raise _error(f"Airflow at {self.url} did not answer {method} {path}: {error or type(error).__name__}. See: moeline status") from None
            else:
                if response.status_code == httpx.codes.UNAUTHORIZED and not last:
                    self._token = None  # tokens expire after a day, and with a new JWT secret
                elif response.status_code not in _GATEWAY_ERRORS or last:
                    return self._content(method, path, response)
            time.sleep(0.5 * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _content(self, method: str, path: str, response: httpx.Response) -> Any:
        if response.is_success:
            return response.json() if response.content else {}
        try:
            detail = response.json().get("detail", response.text)
        except (ValueError, AttributeError):
            detail = response.text
        text = detail if isinstance(detail, str) else json.dumps(detail)
        raise _error(f"Airflow refused {method} {path} with {response.status_code}: {text[:2000]}", response.status_code)

    def _sign_in(self) -> str:
        if self._token is None:
            try:
                password = json.loads(self._password_file.read_text())[self._user]
            except (OSError, ValueError, KeyError) as error:
                raise _error(f"The Airflow password of {self._user!r} was asked for; {self._password_file} cannot be read ({error}). Run: moeline up") from None
            response = self._http.post("/auth/token", json={"username": self._user, "password": password})
            if response.status_code in _GATEWAY_ERRORS:
                raise httpx.ConnectError(f"sign-in answered {response.status_code}")
            if not response.is_success:
                raise _error(f"Airflow at {self.url} refused the password in {self._password_file} ({response.status_code}).", response.status_code)
            self._token = response.json()["access_token"]
        return self._token


def _error(message: str, status: int = 0) -> MoelineError:
    error = MoelineError(message)
    error.status = status  # type: ignore[attr-defined]
    return error


def _event_text(line: Mapping[str, Any]) -> str:
    """One log event; an exception by its type and message (its traceback is in Airflow)."""
    errors = [f"{error.get('exc_type')}: {error.get('exc_value')}" for error in line.get("error_detail") or []]
    return "\n".join([str(line.get("event", "")), *errors])


def _part(value: str) -> str:
    return quote(value, safe="~")


def _midnight(day: dt.date | str) -> str:
    """A data day as the timezone-aware time Airflow wants; full timestamps pass through."""
    text = day.isoformat() if isinstance(day, dt.date) else day
    return text if "T" in text else f"{text}T00:00:00+00:00"
