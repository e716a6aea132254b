"""Wait for Airflow runs and show how they get on: a live table on a terminal, one line per change anywhere else.

Change here: what a person sees while runs go on, and how the remaining time is estimated. Not here: which runs are started
(jobs/launch.py), Airflow's API (jobs/services/airflow.py).
"""

from __future__ import annotations

import datetime as dt
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services.airflow import AirflowClient
from jobs.services.results import write_whole

FINISHED = {"success", "failed"}
_DONE = {"success", "failed", "skipped", "upstream_failed", "removed"}
_MARKS = {"success": "✓", "failed": "✗", "upstream_failed": "-", "skipped": "-", "running": "▶", "up_for_retry": "↻", "awaiting_input": "?", "deferred": "?"}
_STATUS_SECONDS = 15.0  # plain mode: at most this long without a line
_COLUMNS = 6  # runs shown side by side on a terminal
# Seconds per task with the sample corpus on 2 cores: only until this home has seen a task end itself.
_TYPICAL = {
    "ingest": 12.0, "clean": 20.0, "deduplicate": 25.0, "decontaminate": 12.0, "pack": 20.0, "summarise": 6.0,
    "plan": 3.0, "forecast": 90.0, "check_budget": 3.0, "train": 100.0, "evaluate": 30.0, "review": 10.0, "register": 15.0,
}  # fmt: skip


@dataclass
class TaskSeen:
    """One task of one run, as Airflow last reported it."""

    task_id: str
    state: str = "none"
    try_number: int = 0
    seconds: float | None = None  # of the current or last try
    share: float | None = None  # done, 0 to 1, as the stage itself says
    eta_seconds: float | None = None
    text: str = ""


@dataclass
class RunSeen:
    dag_id: str
    run_id: str
    label: str
    state: str = "queued"
    tasks: dict[str, TaskSeen] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


class Watch:
    """Follows runs of one DAG until all have ended. ``runs`` maps run ids to what people call them (a data day, a recipe).

    ``tasks`` is the order of its tasks. ``say`` prints one line; a ``console`` that is a terminal gets a table in place instead.
    """

    def __init__(
        self, env: Environment, client: AirflowClient, dag_id: str, runs: Mapping[str, str], tasks: Sequence[str], *,
        say: Callable[[str], None], console: Any = None,
    ) -> None:  # fmt: skip
        self.env, self.client, self.say, self.console = env, client, say, console
        self.runs = [RunSeen(dag_id, run_id, label) for run_id, label in runs.items()]
        self.order = list(tasks)
        self._started = time.monotonic()
        self._last_line = 0.0
        self._asked: set[str] = set()
        self._history = _read_history(env)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def until_finished(self, *, poll_seconds: float = 2.0) -> list[RunSeen]:
        """Block until every run has ended; returns them. KeyboardInterrupt passes through with the display closed."""
        from contextlib import nullcontext

        live: Any = nullcontext()
        if self.console is not None and self.console.is_terminal:
            from rich.live import Live

            live = Live(console=self.console, refresh_per_second=4, get_renderable=self._table)
        with live:
            while True:
                for run in self.runs:
                    if not run.finished:
                        self._look(run)
                if live.__class__.__name__ != "Live":
                    self._status_line()
                if all(run.finished for run in self.runs):
                    break
                time.sleep(poll_seconds)
        _write_history(self.env, self._history)
        return self.runs

    # -- what Airflow says ----------------------------------------------------------------------------------------------

    def _look(self, run: RunSeen) -> None:
        state = self.client.dag_run(run.dag_id, run.run_id)["state"]
        for instance in self.client.task_instances(run.dag_id, run.run_id):
            seen = run.tasks.setdefault(instance["task_id"], TaskSeen(instance["task_id"]))
            before = (seen.state, seen.try_number)
            seen.state, seen.try_number = instance["state"] or "none", instance["try_number"] or 0
            seen.seconds = _seconds(instance)
            seen.share = seen.eta_seconds = None
            if seen.state == "running":
                self._read_progress(run, seen)
            if (seen.state, seen.try_number) != before:
                self._changed(run, seen)
        run.state = state

    def _read_progress(self, run: RunSeen, seen: TaskSeen) -> None:
        """What the stage process itself last said; nothing when it runs on another machine."""
        name = f"{run.run_id}--{seen.task_id}.json".replace("/", "_")
        file = self.env.home / "progress" / name
        try:
            said, age = json.loads(file.read_text()), time.time() - file.stat().st_mtime
        except (OSError, ValueError):
            return
        if seen.seconds is None or age > seen.seconds:
            return  # of an earlier try
        eta = said.get("eta")
        seen.share, seen.text = said.get("share"), str(said.get("text") or "")
        seen.eta_seconds = None if eta is None else max(1.0, float(eta) - age)

    def _changed(self, run: RunSeen, seen: TaskSeen) -> None:
        if seen.state == "success" and seen.seconds is not None:
            self._history.setdefault(f"{run.dag_id}.{seen.task_id}", []).append(round(seen.seconds, 1))
        where = f"{run.label} {seen.task_id}"
        took = f" in {seen.seconds:.1f} s" if seen.seconds is not None else ""
        line = {
            "running": f"{where}: started" + (f" (try {seen.try_number})" if seen.try_number > 1 else ""),
            "success": f"{where}: done{took}",
            "failed": f"{where}: FAILED{took}",
            "up_for_retry": f"{where}: failed{took}, will be tried again",
        }.get(seen.state)
        if seen.state == "awaiting_input" and where not in self._asked:
            self._asked.add(where)
            line = f"{where}: waits for a person: {task_url(self.client, run, seen.task_id)}/required_actions"
        if line and (self.console is None or not self.console.is_terminal or seen.state in ("failed", "up_for_retry", "awaiting_input")):
            self._line(line)

    # -- what a person sees ---------------------------------------------------------------------------------------------

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.say(f"{clock(self.elapsed)}  {text}")

    def _status_line(self) -> None:
        if time.monotonic() - self._last_line < _STATUS_SECONDS:
            return
        running = [f"{r.label} {t.task_id} {_progress(t)}".strip() for r in self.runs for t in r.tasks.values() if t.state == "running"]
        self._line(f"running: {', '.join(running) or 'nothing yet (Airflow is starting tasks)'}; about {clock(self.remaining_seconds())} left")

    def remaining_seconds(self) -> float:
        """Estimate: the longest of the runs, each task taking what it took before on this machine."""
        return max((sum(self._left(run, name) for name in self.order) for run in self.runs if not run.finished), default=0.0)

    def _left(self, run: RunSeen, name: str) -> float:
        seen = run.tasks.get(name, TaskSeen(name))
        if seen.state in _DONE or name == "approve":
            return 0.0
        if seen.state == "running" and seen.eta_seconds is not None:
            return seen.eta_seconds
        past = self._history.get(f"{run.dag_id}.{name}", [])[-5:]
        expected = statistics.median(past) if past else _TYPICAL.get(name, 15.0)
        return max(expected - (seen.seconds or 0.0), 1.0) if seen.state == "running" else expected

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        done = sum(run.finished for run in self.runs)
        shown = sorted(self.runs, key=lambda run: (run.finished, run.label))[:_COLUMNS]
        shown.sort(key=lambda run: run.label)
        left = self.remaining_seconds()
        title = f"{self.runs[0].dag_id if self.runs else ''}  {done} of {len(self.runs)} runs ended, {clock(self.elapsed)} so far"
        table = Table(title=title + (f", about {clock(left)} left" if left else ""), title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        table.add_column("task")
        for run in shown:
            table.add_column(run.label)
        for name in self.order:
            cells = []
            for run in shown:
                seen = run.tasks.get(name, TaskSeen(name))
                style = {"failed": "bold red", "success": "green", "running": "cyan", "up_for_retry": "yellow", "awaiting_input": "yellow"}.get(
                    seen.state, "dim"
                )
                cells.append(Text(f"{_MARKS.get(seen.state, '·')} {_progress(seen)}", style=style))
            table.add_row(name, *cells)
        return table


def _progress(seen: TaskSeen) -> str:
    parts = [] if seen.seconds is None else [f"{seen.seconds:.0f} s"]
    if seen.state == "running" and seen.share is not None:
        parts.append(f"{seen.share:.0%}")
        parts += [] if seen.eta_seconds is None else [f"ETA {clock(seen.eta_seconds)}"]
        parts += [seen.text[:40]] if seen.text else []
    if seen.try_number > 1:
        parts.append(f"try {seen.try_number}")
    if seen.state == "awaiting_input":
        parts.append("waits for a person")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """``8 s`` or ``3 min 20 s``."""
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def task_url(client: AirflowClient, run: RunSeen, task_id: str) -> str:
    return f"{client.url}/dags/{run.dag_id}/runs/{run.run_id}/tasks/{task_id}"


def failures(runs: Sequence[RunSeen]) -> list[tuple[RunSeen, TaskSeen]]:
    """The tasks that failed by themselves (not because of another one)."""
    return [(run, seen) for run in runs for seen in run.tasks.values() if seen.state == "failed"]


def log_tail(client: AirflowClient, run: RunSeen, seen: TaskSeen, lines: int = 12) -> str:
    """The last lines a task logged, without Airflow's own; a sentence when the log cannot be read."""
    try:
        text = client.log(run.dag_id, run.run_id, seen.task_id, max(seen.try_number, 1))
    except MoelineError as error:
        return f"(its log cannot be read: {error})"
    logged = [line for line in text.splitlines() if line.strip() and not line.startswith(("::group::", "::endgroup::"))]
    starts = ("Starting: -m jobs.run", "Worker startup parse complete")  # after these the stage itself speaks
    begin = max((n + 1 for n, line in enumerate(logged) if line.startswith(starts)), default=0)
    spoken = [line for line in logged[begin:] if line != "Task failed with exception"]
    repeated = next((n for n, line in enumerate(spoken) if n and line.startswith("Airflow") and "Exception: " in line), len(spoken))
    return "\n".join(spoken[:repeated][-lines:])


def _seconds(instance: Mapping[str, Any]) -> float | None:
    if instance.get("duration") is not None and instance.get("end_date"):
        return float(instance["duration"])
    if not instance.get("start_date"):
        return None
    started = dt.datetime.fromisoformat(instance["start_date"].replace("Z", "+00:00"))
    return max(0.0, (dt.datetime.now(dt.UTC) - started).total_seconds())


def _history_file(env: Environment) -> Any:
    return env.home / "task_seconds.json"


def _read_history(env: Environment) -> dict[str, list[float]]:
    try:
        return {str(k): [float(x) for x in v] for k, v in json.loads(_history_file(env).read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write_history(env: Environment, history: Mapping[str, list[float]]) -> None:
    write_whole(_history_file(env), json.dumps({name: seconds[-20:] for name, seconds in history.items()}).encode())
