"""What people decide about a run, through real Airflow: other benchmarks, a question over the budget, waiting for data, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from people import person
from running_platform import until
from whole_job import RECIPE, WholeJob

from jobs import launch, sample_data
from jobs.config import PREPARE_STAGES
from jobs.contract import BudgetExceeded
from jobs.environment import REPO
from jobs.services import delta, results
from jobs.services.airflow import AirflowClient

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("answer", "trains"), [("Reject", False), ("Approve", True)])
def test_over_the_budget_a_person_is_asked_and_the_answer_counts(whole_job: WholeJob, answer: str, trains: bool) -> None:
    budget = {"Reject": 0.00002, "Approve": 0.00003}[answer]  # each a run of its own
    outcome: dict = {}

    def start() -> None:
        try:
            outcome["done"] = launch.run(whole_job.env, RECIPE, 2, echo=lambda _: None, budget_usd=budget, over_budget="ask")
        except BudgetExceeded as refused:
            outcome["refused"] = refused

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    with AirflowClient(whole_job.env) as client:
        question = until(client.awaiting_input, seconds=180, what="a question")[0]
        run_id = question["task_instance"]["dag_run_id"]
        assert f"the budget is **{budget:.2f} USD**" in question["body"]
        assert "train" not in {t["task_id"] for t in client.task_instances("build_model", run_id) if t["state"] in ("running", "success")}

        def waiting() -> bool:
            return any(t["task_id"] == "approve" and t["state"] == "awaiting_input" for t in client.task_instances("build_model", run_id))

        until(waiting, seconds=30, what="the task approve waits")
        time.sleep(10)  # Airflow 3.3.2 fails the task when the answer comes before the process that asked has ended; no person is that quick
        body, path = {"chosen_options": [answer], "params_input": {}}, f"/api/v2/dags/build_model/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails"
        for role in ("viewer", "runner"):
            with person(whole_job.env, role) as somebody:
                assert somebody.patch(path, json=body).status_code == 403
        with person(whole_job.env, "approver") as approver:
            assert approver.patch(path, json=body).status_code == 200
        thread.join(300)
        states = {t["task_id"]: t["state"] for t in client.task_instances("build_model", run_id)}
    assert not thread.is_alive()
    if trains:
        assert (states["approve"], states["train"], states["register"]) == ("success", "success", "success")
        assert "done" in outcome
        approval = max((row for row in delta.rows(whole_job.env, "checks") if row["rule"] == "Approval"), key=lambda row: row["checked_at"])
        assert json.loads(approval["observed"]) == {"approved_by": "an-approver", "budget_usd": budget}
    else:
        assert (states["approve"], states["train"]) == ("success", "skipped")
        assert "not approved" in str(outcome["refused"])


def test_other_benchmarks_go_through_the_whole_job(whole_job: WholeJob, tmp_path) -> None:
    rows = [{"query": f"Question {i}: which letter follows {c}?", "choices": ["b", "c", "d", "q"], "gold": "bcd".index(chr(ord(c) + 1))}
            for i, c in enumerate("abcabcabcabc")]  # fmt: skip
    (tmp_path / "local_data" / "letters").mkdir(parents=True)
    (tmp_path / "local_data" / "letters" / "next_letter.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"label": "next_letter", "dataset_uri": "eval/local_data/letters/next_letter.jsonl", "num_fewshot": [1], "icl_task_type": "multiple_choice",
            "continuation_delimiter": " "}  # fmt: skip
    (tmp_path / "tasks.yaml").write_text(json.dumps({"icl_tasks": [task]}))
    outcome = launch.run(whole_job.env, RECIPE, 2, echo=lambda _: None, gauntlet_data=str(tmp_path))
    first = {s["run_key"] for s in whole_job.outcome["stages"]}
    assert {s["stage"] for s in outcome["stages"] if s["run_key"] in first} == {"ingest", "clean", "deduplicate"}
    evaluated = next(s["run_key"] for s in outcome["stages"] if s["stage"] == "evaluate")
    scores = {row["benchmark"]: row for row in delta.rows(whole_job.env, "scores") if row["run_key"] == evaluated}
    assert any("next_letter" in name for name in scores) and len(scores) > 2
    responses = [row for row in delta.rows(whole_job.env, "responses") if row["run_key"] == evaluated and "next_letter" in row["benchmark"]]
    assert len(responses) == len(rows)
    # Rows decontaminated for other benchmarks are another corpus: without them the first job's results are all found again.
    plain = launch.run(whole_job.env, RECIPE, 2, echo=lambda _: None)
    assert plain["computed"] == 0
    assert {s["run_key"] for s in plain["stages"]} == first


def test_announced_data_starts_a_build_which_waits_for_enough_tokens(whole_job: WholeJob) -> None:
    """An asset-triggered run has the default recipe, for which this warehouse holds no tokens: it plans, and skips the rest."""
    trained = len(results.of_stage(whole_job.env, "train"))
    with AirflowClient(whole_job.env) as client:
        before = {run["dag_run_id"] for run in client.dag_runs("build_model", run_type="asset_triggered")}
        client.unpause("build_model")
        try:
            corpus = next(asset for asset in client._call("GET", "/assets")["assets"] if asset["name"] == "corpus")
            client._call("POST", "/assets/events", body={"asset_id": corpus["id"], "extra": {}})

            def started():
                return [r for r in client.dag_runs("build_model", run_type="asset_triggered") if r["dag_run_id"] not in before and r["state"] == "success"]

            run = until(started, seconds=120, what="a finished run started by the asset")[0]
        finally:
            client.pause("build_model")
        states = {t["task_id"]: t["state"] for t in client.task_instances("build_model", run["dag_run_id"])}
        assert states["plan"] == "skipped" and states["train"] == "skipped" and states["register"] == "skipped"
    assert len(results.of_stage(whole_job.env, "train")) == trained


def test_ctrl_c_leaves_everything_consistent_and_the_same_command_goes_on(whole_job: WholeJob) -> None:
    env, day, recipe = whole_job.env, "2026-01-05", "tiny"  # another recipe's day: the whole job's corpus stays what it is
    sample_data.write(env.landing, [day], target_bytes=2_000_000)  # enough for a vocabulary of 4,096
    # A shell starts what runs in its background deaf to Ctrl-C, and these tests may run there.
    listening = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from jobs.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", listening, "backfill", "--from", day, "--to", day, "--recipe", recipe, "--home", str(env.home)]
    process = subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    said = []
    for line in process.stderr:
        said.append(line)
        if "clean: started" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, "".join(said)
    assert "prepare_corpus is paused: tasks that are running finish and are recorded, nothing new starts" in "".join(said)
    with AirflowClient(env) as client:
        assert client.dag("prepare_corpus")["is_paused"]
    again = launch.backfill(env, [day], recipe=recipe, echo=lambda _: None)
    assert [s["stage"] for s in again["stages"]] == list(PREPARE_STAGES)
    assert {r["state"] for r in again["runs"]} == {"success"}
    for stage in PREPARE_STAGES:
        assert len([r for r in results.of_stage(env, stage) if r.interval == day]) == 1
    charges = [c for c in delta.rows(env, "costs") if c["x_Interval"] == day and c["x_Phase"] == "prepare" and c["BilledCost"] > 0]
    assert sorted(c["x_TaskId"] for c in charges) == sorted(PREPARE_STAGES)
