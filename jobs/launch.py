"""`moeline run` and `moeline backfill`: the whole job through Airflow, watched by the person who asked for it.

Change here: what these two commands start and say. Not here: the order of stages (dags/), how progress looks (jobs/watch.py).

Both DAGs are paused until someone unpauses them; Airflow starts nothing of a paused DAG, backfills neither. So a command unpauses
what it needs while it needs it. Ctrl-C pauses it again: running tasks finish and are recorded, nothing new starts, and the same
command later continues where this one stopped.
"""

from __future__ import annotations

import datetime as dt
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jobs.config import PREPARE_STAGES
from jobs.contract import BudgetExceeded, MoelineError, parse_day
from jobs.environment import Environment
from jobs.services import landing
from jobs.services.airflow import AirflowClient
from jobs.services.results import write_whole
from jobs.watch import RunSeen, TaskSeen, Watch, failures, log_tail, task_url

PREPARE, BUILD = "prepare_corpus", "build_model"
TASKS = {PREPARE: PREPARE_STAGES, BUILD: ("plan", "forecast", "check_budget", "approve", "train", "evaluate", "review", "register")}
_ACTIVE = {"queued", "running"}
_MOST_DAYS = 3650  # of sample corpus
Echo = Callable[[str], None]


def run(
    env: Environment, recipe: str, days: int, *, echo: Echo, gauntlet_data: str | None = None, budget_usd: float | None = None,
    over_budget: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The main job: sample corpus if nothing has landed, Airflow's backfill of its days, one model build, the report.

    Returns runs, seconds per step, cost and whether everything was reused. Raises MoelineError (after showing the failing task's
    log) when a run failed, BudgetExceeded when the budget stopped it.
    """
    conf = _conf(env, recipe, gauntlet_data)
    seconds: dict[str, float] = {}
    started = time.monotonic()
    with _sigterm_as_ctrl_c(), AirflowClient(env) as client:
        chosen = _landed_days(env, days, echo)
        seconds["sample corpus"] = time.monotonic() - started
        prepared = _prepare(env, client, chosen, conf, reprocess=False, echo=echo)
        seconds["prepare_corpus"] = time.monotonic() - started - sum(seconds.values())
        choices = {"budget_usd": budget_usd, "over_budget": over_budget}
        build = _build(env, client, {**conf, **{name: value for name, value in choices.items() if value is not None}}, echo)
        seconds["build_model"] = time.monotonic() - started - sum(seconds.values())
        runs = [*prepared, build]
        summary = _summary(client, runs)
        echo(f"\n{_spent(summary)}")
        _tell_seconds(seconds, runs, echo)
        _tell_report(env, echo)
        _tell_addresses(env, client, build, echo)
        if build.tasks.get("train", TaskSeen("train")).state == "skipped":
            raise BudgetExceeded("No model was trained: the forecast is over the budget, and the question at the task approve was not approved.")
    return {**summary, "recipe": recipe, "days": chosen, "seconds": {**seconds, "total": time.monotonic() - started}}


def backfill(
    env: Environment, days: Sequence[str], *, recipe: str = "tiny", reprocess: bool = False, echo: Echo, gauntlet_data: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Prepare data days, given in order, through Airflow's own backfill; ``reprocess``: finished days too."""
    started = time.monotonic()
    with _sigterm_as_ctrl_c(), AirflowClient(env) as client:
        runs = _prepare(env, client, days, _conf(env, recipe, gauntlet_data), reprocess=reprocess, echo=echo) if days else []
        summary = _summary(client, runs)
        echo(_spent(summary))
    return {**summary, "recipe": recipe, "days": [r.label for r in runs], "seconds": {"total": time.monotonic() - started}}


def day_range(first: str, last: str) -> list[str]:
    """The data days ``first`` to ``last``, both included. Raises MoelineError for no day at all."""
    first, last = parse_day(first), parse_day(last)
    if first > last:
        raise MoelineError(f"A backfill from {first} to {last} was asked for, which has no day in it. Swap --from and --to.")
    return _days_between(first, last)


def sample_days(env: Environment, days: int) -> list[str]:
    """The data days of the sample corpus: the ``days`` days before today when first asked, and the same ones ever after.

    They end yesterday, because unpausing a daily DAG starts the run of yesterday, which should find data.
    """
    file = env.home / "sample_days.json"
    try:
        return [parse_day(day) for day in json.loads(file.read_text())]
    except FileNotFoundError:
        pass
    if not 1 <= days <= _MOST_DAYS:
        raise MoelineError(f"{str(days)[:20]} days of sample corpus were asked for. Ask for at least one, at most {_MOST_DAYS:,}.")
    today = dt.datetime.now(dt.UTC).date()
    chosen = [(today - dt.timedelta(days=back)).isoformat() for back in range(days, 0, -1)]
    write_whole(file, json.dumps(chosen).encode())
    return chosen


def _conf(env: Environment, recipe: str, gauntlet_data: str | None) -> dict[str, Any]:
    from jobs import recipes

    recipes.load(recipe, home=env.home)  # an unknown name is said here, not by a failed Airflow run
    return {"recipe": recipe, **({"gauntlet_data": gauntlet_data} if gauntlet_data else {})}


# -- landing zone -----------------------------------------------------------------------------------------------------------


def _landed_days(env: Environment, days: int, echo: Echo) -> list[str]:
    """The last ``days`` days with files in the landing zone, after writing the sample corpus if there are none."""
    unfinished = env.home / "sample_days.unfinished"
    landed = landing.days(env)
    if not landed or unfinished.exists():
        chosen = sample_days(env, days)
        write_whole(unfinished, b"")
        echo(f"Writing the sample corpus for {chosen[0]} to {chosen[-1]} (source code and documentation of the installed Python distributions)")
        from jobs import sample_data

        summary = sample_data.write(landing.local(env), chosen, progress=sample_data.progress_lines(echo))
        unfinished.unlink(missing_ok=True)
        echo(f"Sample corpus: {summary}")
        landed = landing.days(env)
    chosen = landed[-days:]
    if len(chosen) < days:
        echo(f"{days} days were asked for; the landing zone has {len(chosen)}: {', '.join(chosen)}")
    return chosen


# -- the two DAGs -----------------------------------------------------------------------------------------------------------


def _prepare(env: Environment, client: AirflowClient, days: Sequence[str], conf: Mapping[str, Any], *, reprocess: bool, echo: Echo) -> list[RunSeen]:
    """Backfill ``days`` as far as needed and wait; returns the runs of those days, one per day."""
    client.wait_for_dag(PREPARE)
    existing = _runs_by_day(client, days[0], days[-1])
    changed = [day for day in days if day in existing and existing[day]["state"] not in _ACTIVE and _other_work(existing[day], conf)]
    todo = [day for day in days if reprocess or day in changed or existing.get(day, {}).get("state") != "success"]
    seen = {day: RunSeen(PREPARE, existing[day]["dag_run_id"], day, "success") for day in days if day not in todo}
    if not todo:
        echo(f"{PREPARE}: all {len(days)} days from {days[0]} to {days[-1]} are prepared already; no run was started")
        return list(seen.values())
    echo(f"{PREPARE}: {len(todo)} of {len(days)} days to do, at most {_width(env)} at a time; follow it at {client.url}/dags/{PREPARE}")
    behaviour = "completed" if reprocess or changed else "failed"
    with _unpaused(client, PREPARE, echo) as unpause:
        for span in _spans(todo):
            _create_backfill(env, client, span[0], span[-1], behaviour, conf, unpause, echo)
            unpause()
            runs = _runs_by_day(client, span[0], span[-1])
            if missing := [day for day in span if day not in runs]:
                raise MoelineError(
                    f"Airflow created no run for {', '.join(missing)}. A day can be prepared when it has ended (UTC) and is not before 2020-01-01; "
                    f"see {client.url}/dags/{PREPARE}."
                )
            followed = _follow(env, client, PREPARE, {runs[day]["dag_run_id"]: day for day in span}, echo)
            seen.update({run.label: run for run in followed})
    return [seen[day] for day in days]


def _create_backfill(
    env: Environment, client: AirflowClient, first: str, last: str, behaviour: str, conf: Mapping[str, Any], unpause: Callable[[], None], echo: Echo
) -> None:
    """Airflow allows one active backfill per DAG: join the one that covers these days, else wait for it and then create this one."""
    for active in [found for found in client.backfills(PREPARE) if found["completed_at"] is None]:
        begin, end = active["from_date"][:10], active["to_date"][:10]
        going_on = [run for run in _runs_by_day(client, begin, end).values() if run["state"] in _ACTIVE]
        if not going_on:  # Airflow notices the end of a backfill up to a minute late; until then it refuses another
            client.cancel_backfill(active["id"])
            continue
        unpause()
        if begin <= first and last <= end and not _other_work({"conf": active["dag_run_conf"]}, conf):
            echo(f"{PREPARE}: joining the backfill of {begin} to {end} that is active already")
            return
        echo(f"{PREPARE}: waiting for the backfill of {begin} to {end} that is active already")
        _watch(env, client, PREPARE, {run["dag_run_id"]: run["data_interval_start"][:10] for run in going_on}, echo)
        client.cancel_backfill(active["id"])
    client.create_backfill(PREPARE, first, last, _width(env), behaviour, conf)


def _build(env: Environment, client: AirflowClient, conf: Mapping[str, Any], echo: Echo) -> RunSeen:
    """One run of build_model with ``conf``: the active one if there is one, else a new one."""
    client.wait_for_dag(BUILD)
    with _unpaused(client, BUILD, echo) as unpause:
        active = [r for r in client.dag_runs(BUILD) if r["state"] in _ACTIVE and (r.get("conf") or {}) == dict(conf)]
        started = active[0] if active else client.trigger(BUILD, conf)
        unpause()
        url = f"{client.url}/dags/{BUILD}/runs/{started['dag_run_id']}"
        echo(f"{BUILD}: {'joining the run that is active already' if active else 'started'}; follow it at {url}")
        return _follow(env, client, BUILD, {started["dag_run_id"]: conf["recipe"]}, echo)[0]


def _follow(env: Environment, client: AirflowClient, dag_id: str, runs: Mapping[str, str], echo: Echo) -> list[RunSeen]:
    ended = _watch(env, client, dag_id, runs, echo)
    failed = [run for run in ended if run.state == "failed"]
    if failed:
        over_budget = any(seen.task_id == "check_budget" for _, seen in failures(failed))
        raise (BudgetExceeded if over_budget else MoelineError)(_failure_text(client, failed, len(ended)))
    return ended


def _watch(env: Environment, client: AirflowClient, dag_id: str, runs: Mapping[str, str], echo: Echo) -> list[RunSeen]:
    return Watch(env, client, dag_id, runs, TASKS[dag_id], say=echo, console=_console()).until_finished()


def _failure_text(client: AirflowClient, failed: Sequence[RunSeen], total: int) -> str:
    parts = [f"{len(failed)} of {total} runs of {failed[0].dag_id} failed ({', '.join(run.label for run in failed)}); the others are done and stay done."]
    for run, seen in failures(failed)[:3]:
        tail = "\n".join(f"    {line}" for line in log_tail(client, run, seen).splitlines())
        parts.append(
            f"{run.label}, task {seen.task_id}, try {seen.try_number}: the last lines of its log:\n{tail}\n  All of it: {task_url(client, run, seen.task_id)}"
        )
    parts.append("After mending the cause run the same command again: what is done is kept, what failed is done again.")
    return "\n".join(parts)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """However the command is stopped, it leaves Airflow as Ctrl-C does."""

    def stop(signal_number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _unpaused(client: AirflowClient, dag_id: str, echo: Echo) -> Iterator[Callable[[], None]]:
    """Gives a function that unpauses the DAG; pauses it again at the end if it was paused and nothing else of it is running."""
    was_paused = client.dag(dag_id)["is_paused"]

    def unpause() -> None:
        client.unpause(dag_id)

    try:
        yield unpause
    except KeyboardInterrupt:
        if was_paused:
            client.pause(dag_id)
            echo(
                f"\nStopped waiting. {dag_id} is paused: tasks that are running finish and are recorded, nothing new starts. "
                f"The same command continues from there. To stop the running tasks too, mark the runs failed at {client.url}/dags/{dag_id}"
            )
        else:
            echo(f"\nStopped waiting. {dag_id} was not paused before, so Airflow goes on with it: {client.url}/dags/{dag_id}")
        raise
    except BaseException:
        _pause_if_idle(client, dag_id, was_paused)
        raise
    _pause_if_idle(client, dag_id, was_paused)


def _pause_if_idle(client: AirflowClient, dag_id: str, was_paused: bool) -> None:
    if was_paused and not any(client.dag_runs(dag_id, state=state) for state in _ACTIVE):
        client.pause(dag_id)


# -- small questions --------------------------------------------------------------------------------------------------------


def _runs_by_day(client: AirflowClient, first: str, last: str) -> dict[str, dict[str, Any]]:
    """The run of each data day; by data interval, because a manual run of date D covers the day before D."""
    found: dict[str, dict[str, Any]] = {}
    for dag_run in client.dag_runs(PREPARE, logical_date_gte=first, logical_date_lte=last, order_by="run_after"):
        day = (dag_run.get("data_interval_start") or "")[:10]
        if day and dag_run["logical_date"][:10] == day:
            found[day] = dag_run
    return found


def _other_work(found: Mapping[str, Any], conf: Mapping[str, Any]) -> bool:
    """Whether a run was about another recipe or other benchmark data than asked for now."""
    had = {"recipe": "tiny", **(found.get("conf") or {})}
    return any(had.get(key) != conf.get(key) for key in ("recipe", "gauntlet_data"))


def _days_between(first: str, last: str) -> list[str]:
    start, end = dt.date.fromisoformat(first), dt.date.fromisoformat(last)
    return [(start + dt.timedelta(days=n)).isoformat() for n in range((end - start).days + 1)]


def _spans(days: Sequence[str]) -> list[list[str]]:
    """Runs of consecutive days, because a backfill covers every day of its range and some days may have no data."""
    spans: list[list[str]] = []
    for day in days:
        if spans and _days_between(spans[-1][-1], day)[1:] == [day]:
            spans[-1].append(day)
        else:
            spans.append([day])
    return spans


def _width(env: Environment) -> int:
    return int(env.services.get("backfill_max_active_runs", 3))


def _console() -> Any:
    from rich.console import Console

    return Console(file=sys.stderr)


# -- the end ----------------------------------------------------------------------------------------------------------------


def _summary(client: AirflowClient, runs: Sequence[RunSeen]) -> dict[str, Any]:
    """What was computed and what was found recorded; a run that was not watched (done before) computed nothing."""
    stages = []
    for run in runs:
        for seen in (run.tasks[name] for name in TASKS[run.dag_id] if name in run.tasks):
            if seen.state == "success" and seen.task_id not in ("plan", "check_budget", "approve"):
                result = client.xcom(run.dag_id, run.run_id, seen.task_id)
                stages.append({"run_id": run.run_id, "label": run.label, **{k: result[k] for k in ("stage", "run_key", "outputs", "reused", "cost_usd")}})
    spent = sum(s["cost_usd"] for s in stages if not s["reused"])
    computed = sum(not s["reused"] for s in stages)
    return {"runs": [{"dag_id": r.dag_id, "run_id": r.run_id, "state": r.state} for r in runs], "stages": stages, "computed": computed, "cost_usd": spent}


def _spent(summary: Mapping[str, Any]) -> str:
    reused = sum(s["reused"] for s in summary["stages"])
    if not summary["stages"]:
        return "Nothing was recomputed: all of it was done before. Spent: $0."
    if not summary["computed"]:
        return f"Nothing was recomputed: every result was recorded before under the same run keys ({reused} stages reused). Spent: $0."
    return f"{summary['computed']} stages computed, {reused} reused. Spent: ${summary['cost_usd']:.4f}"


def _tell_seconds(seconds: Mapping[str, float], runs: Sequence[RunSeen], echo: Echo) -> None:
    echo("\nSeconds per step")
    for name, value in seconds.items():
        echo(f"  {name:<24}{value:8.1f}")
        dag_runs = [run for run in runs if run.dag_id == name]
        for task_id in TASKS.get(name, ()):
            took = [run.tasks[task_id].seconds or 0.0 for run in dag_runs if task_id in run.tasks and run.tasks[task_id].state == "success"]
            if took:
                echo(f"    {task_id:<22}{sum(took):8.1f}" + (f"  over {len(took)} days" if len(took) > 1 else ""))
    echo(f"  {'total':<24}{sum(seconds.values()):8.1f}")


def _tell_report(env: Environment, echo: Echo) -> None:
    from jobs.services import report

    echo("")
    echo(report.render(env).rstrip("\n"))


def _tell_addresses(env: Environment, client: AirflowClient, build: RunSeen, echo: Echo) -> None:
    addresses = env.platform
    echo("\nLook at it")
    echo(f"  Airflow            {client.url}")
    echo(f"  This build         {client.url}/dags/{build.dag_id}/runs/{build.run_id}")
    echo(f"  Cost vs accuracy   {client.url}/plugin/cost-vs-accuracy")
    if addresses.get("mlflow_uri"):
        echo(f"  MLflow             {addresses['mlflow_uri']}")
    if addresses.get("mlflow_password_file"):
        echo(f"    sign in as       {addresses['mlflow_user']}, password in {addresses['mlflow_password_file']}")
    if addresses.get("airflow_password_file"):
        echo(f"  Sign in as         {addresses.get('airflow_user', 'admin')}, password in {addresses['airflow_password_file']}")
