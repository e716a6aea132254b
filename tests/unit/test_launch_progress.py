"""What a person sees while runs go on: words, and an estimate that comes from this machine's own past."""

from __future__ import annotations

import json
from typing import Any

from jobs.environment import Environment
from jobs.launch import PREPARE, TASKS
from jobs.watch import RunSeen, TaskSeen, Watch, _progress, _seconds, clock, failures


def watching(env: Environment, runs: dict[str, str]) -> Watch:
    nobody: Any = None  # these questions are answered without asking Airflow
    return Watch(env, nobody, PREPARE, runs, TASKS[PREPARE], say=print)


def past(env: Environment, **seconds: list[float]) -> None:
    env.home.mkdir(parents=True, exist_ok=True)
    (env.home / "task_seconds.json").write_text(json.dumps({f"{PREPARE}.{task}": values for task, values in seconds.items()}))


def test_durations_read_like_a_clock() -> None:
    assert [clock(s) for s in (0.2, 59.4, 60, 200, 3725)] == ["0 s", "59 s", "1 min 00 s", "3 min 20 s", "62 min 05 s"]


def test_remaining_time_is_that_of_the_longest_run_by_what_tasks_took_here_before(env: Environment) -> None:
    past(env, ingest=[10, 12, 11], clean=[20], deduplicate=[30], decontaminate=[5], pack=[7], summarise=[3])
    watch = watching(env, {"a": "2026-01-05", "b": "2026-01-06"})
    watch.runs[0].tasks = {"ingest": TaskSeen("ingest", "success"), "clean": TaskSeen("clean", "success")}
    watch.runs[1].tasks = {"ingest": TaskSeen("ingest", "success"), "clean": TaskSeen("clean", "running", 1, seconds=15.0)}
    assert watch.remaining_seconds() == 5 + 30 + 5 + 7 + 3


def test_a_stages_own_estimate_beats_the_past(env: Environment) -> None:
    past(env, ingest=[10], clean=[20], deduplicate=[30], decontaminate=[5], pack=[7], summarise=[3])
    watch = watching(env, {"a": "2026-01-05"})
    done = {name: TaskSeen(name, "success") for name in ("ingest", "clean", "deduplicate", "decontaminate")}
    watch.runs[0].tasks = {**done, "pack": TaskSeen("pack", "running", 1, seconds=100.0, share=0.5, eta_seconds=99.0)}
    assert watch.remaining_seconds() == 99.0 + 3


def test_a_broken_memory_of_durations_is_no_reason_to_fail(env: Environment) -> None:
    env.home.mkdir(parents=True, exist_ok=True)
    (env.home / "task_seconds.json").write_text("[1, 2")
    assert watching(env, {"a": "2026-01-05"}).remaining_seconds() > 0


def test_ended_runs_need_no_more_time(env: Environment) -> None:
    watch = watching(env, {"a": "2026-01-05"})
    watch.runs[0].state = "failed"
    assert watch.remaining_seconds() == 0


def test_a_running_task_shows_share_estimate_and_try() -> None:
    assert (
        _progress(TaskSeen("train", "running", 2, seconds=61.0, share=0.25, eta_seconds=183.0, text="loss 4.2")) == "61 s, 25%, ETA 3 min 03 s, loss 4.2, try 2"
    )


def test_a_task_without_a_start_has_no_duration() -> None:
    assert _seconds({"start_date": None, "end_date": None, "duration": None}) is None
    assert _seconds({"start_date": "2026-01-05T00:00:00Z", "end_date": "2026-01-05T00:00:04Z", "duration": 4.0}) == 4.0


def test_only_tasks_that_failed_themselves_are_reported() -> None:
    run = RunSeen(PREPARE, "a", "2026-01-05", "failed", {"clean": TaskSeen("clean", "failed"), "pack": TaskSeen("pack", "upstream_failed")})
    assert [(r.label, t.task_id) for r, t in failures([run])] == [("2026-01-05", "clean")]
