"""One Airflow task is one stage process: its result, its refusals, its end."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

stage_task = pytest.importorskip("stage_task")


def operator(name: str = "clean", **kwargs: Any) -> Any:
    return stage_task.StageOperator(task_id=name, **kwargs)


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


RESULT = {"stage": "clean", "outputs": {"clean_documents": "clean_documents@3"}, "metrics": {}}


def test_the_last_line_of_stdout_is_the_result_and_the_rest_is_ignored() -> None:
    noisy = f"import json, sys; print('a library says hello'); print('log', file=sys.stderr); print(json.dumps({RESULT!r}))"
    assert operator()._run(script(noisy), dict(os.environ)) == RESULT


def test_a_refusal_is_not_retried_and_says_what_the_stage_said() -> None:
    with pytest.raises(stage_task.AirflowFailException, match="12 rows break"):
        operator()._run(script("import sys; print('12 rows break the rule', file=sys.stderr); sys.exit(3)"), dict(os.environ))


def test_another_failure_is_retried() -> None:
    with pytest.raises(stage_task.AirflowException, match=r"exit code 1.*\n.*disk full") as failed:
        operator()._run(script("import sys; sys.exit('disk full')"), dict(os.environ))
    assert not isinstance(failed.value, stage_task.AirflowFailException)


def test_a_process_without_a_result_fails() -> None:
    with pytest.raises(stage_task.AirflowException, match="printed no result"):
        operator()._run(script("print('done')"), dict(os.environ))


def test_a_service_left_behind_by_the_stage_does_not_hold_up_the_task() -> None:
    leaves = f"import json, subprocess, sys; p = subprocess.Popen(['sleep', '30']); print(p.pid, file=sys.stderr); print(json.dumps({RESULT!r}))"
    task = operator()
    began = time.monotonic()
    task._run(script(leaves), dict(os.environ))
    assert time.monotonic() - began < 20
    os.killpg(task._process.pid, 9)  # the sleeper


def stop_while_running(task: Any, text: str) -> float:
    """Run a process, stop the task once the process says it is ready; seconds from the stop to its end."""
    ended: list[float] = []
    ready = threading.Event()
    relay = task._relay

    def watch(stream: Any, last: list[str]) -> None:
        ready.set() if stream.readline() else None
        relay(stream, last)

    task._relay = watch

    def run() -> None:
        with pytest.raises(stage_task.AirflowException):
            task._run(script(text), dict(os.environ))
        ended.append(time.monotonic())

    runner = threading.Thread(target=run)
    runner.start()
    assert ready.wait(20)
    began = time.monotonic()
    task.on_kill()
    runner.join(30)
    assert ended, "the process was not stopped"
    return ended[0] - began


def test_stopping_a_task_lets_the_stage_end_cleanly(tmp_path: Path) -> None:
    note = tmp_path / "cost-row"
    text = (
        "import signal, sys, time\n"
        f"def stop(*_): time.sleep(0.5); open({str(note)!r}, 'w').write('written'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); print('ready', file=sys.stderr, flush=True); time.sleep(60)\n"
    )
    stop_while_running(operator(), text)
    assert note.read_text() == "written"


def test_a_stage_that_ignores_the_signal_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stage_task, "STOP_SECONDS", 1.0)
    child = tmp_path / "child"
    text = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); open({str(child)!r}, 'w').write(str(p.pid))\n"
        "print('ready', file=sys.stderr, flush=True); time.sleep(60)\n"
    )
    assert 0.5 < stop_while_running(operator(), text) < 15
    state = Path(f"/proc/{child.read_text()}/stat")
    deadline = time.monotonic() + 5
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_versions_of_all_earlier_stages_are_pinned_and_what_was_written_wins() -> None:
    results = [
        {"inputs": {"landing": "0123abcd"}, "outputs": {"documents": "documents@3"}},
        {"inputs": {"documents": "documents@3", "fingerprints": "fingerprints@8"}, "outputs": {"fingerprints": "fingerprints@9"}},
        None,  # a skipped task
        {"inputs": {"sequences": "sequences@7"}, "enough": True},  # the plan of a build
    ]
    assert stage_task.pinned_inputs(results) == {"documents": "documents@3", "fingerprints": "fingerprints@9", "sequences": "sequences@7"}


def test_the_stage_knows_which_attempt_of_which_task_it_is() -> None:
    ti = SimpleNamespace(dag_id="prepare_corpus", run_id="backfill__x", task_id="clean", map_index=-1, try_number=2)
    environment = stage_task.stage_environment({"ti": ti, "params": {"gauntlet_data": None}})
    assert json.loads(environment["MOELINE_ATTEMPT"]) == {
        "dag_id": "prepare_corpus",
        "dag_run_id": "backfill__x",
        "task_id": "clean",
        "map_index": -1,
        "try_number": 2,
    }
    assert stage_task.stage_environment({"ti": ti, "params": {"gauntlet_data": "/data/gauntlet"}})["GAUNTLET_DATA"] == "/data/gauntlet"
