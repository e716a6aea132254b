"""The main job as a person starts it, through real Airflow: prepared by a backfill, forecast, trained, evaluated, registered, priced."""

from __future__ import annotations

import pytest
from running_platform import mlflow_sign_in
from whole_job import RECIPE, WholeJob

from expectations.tables import TABLES
from jobs import cli, launch
from jobs.config import BUILD_STAGES, PREPARE_STAGES, WRITERS
from jobs.contract import BudgetExceeded
from jobs.services import delta, report, results
from jobs.services.airflow import AirflowClient

pytestmark = pytest.mark.integration

REPORTED = {
    "run_id", "recipe", "model_version", "params_total", "params_active", "tokens", "cost_usd", "cost_by_phase", "wasted_usd", "wall_seconds", "loss",
    "loss_forecast", "loss_low", "loss_high", "accuracy", "accuracy_stderr", "accuracy_forecast", "checks_passed", "checks_failed", "registered", "aliases",
}  # fmt: skip


def own_build(job: WholeJob) -> dict:
    return next(run for run in report.runs(job.env) if run["run_id"] == job.build_run_id)


def test_every_stage_of_every_day_and_of_the_build_was_computed(whole_job: WholeJob) -> None:
    done = sorted((s["label"], s["stage"]) for s in whole_job.outcome["stages"] if not s["reused"])
    assert done == sorted([(day, stage) for day in whole_job.days for stage in PREPARE_STAGES] + [(RECIPE, stage) for stage in BUILD_STAGES])
    assert {run["state"] for run in whole_job.outcome["runs"]} == {"success"}


def test_the_days_were_airflows_own_backfill_and_each_run_wrote_its_own_day(whole_job: WholeJob) -> None:
    with AirflowClient(whole_job.env) as client:
        runs = [client.dag_run(run["dag_id"], run["run_id"]) for run in whole_job.outcome["runs"] if run["dag_id"] == "prepare_corpus"]
        assert [run["run_type"] for run in runs] == ["backfill"] * len(whole_job.days)
        for run, day in zip(runs, whole_job.days, strict=True):
            assert run["data_interval_start"].startswith(day)
            assert client.xcom("prepare_corpus", run["dag_run_id"], "pack")["interval"] == day
    documents = delta.rows(whole_job.env, "documents")
    assert {row["interval"] for row in documents} >= set(whole_job.days)
    assert all(f"/{row['interval']}/" in row["landed_file"] for row in documents)


def test_what_passes_between_tasks_is_small_and_names_exact_versions(whole_job: WholeJob) -> None:
    with AirflowClient(whole_job.env) as client:
        trained = client.xcom("build_model", whole_job.build_run_id, "train")
    assert set(trained) == set(results.newest(whole_job.env, "train").__dataclass_fields__)
    packed = [s["outputs"]["sequences"] for s in whole_job.outcome["stages"] if s["stage"] == "pack"]
    assert trained["inputs"]["sequences"] == max(packed, key=lambda version: int(version.partition("@")[2]))


def test_the_last_task_of_a_day_announces_it_on_the_asset(whole_job: WholeJob) -> None:
    with AirflowClient(whole_job.env) as client:
        events = client._call("GET", "/assets/events", params={"source_dag_id": "prepare_corpus"})["asset_events"]
    announced = {event["extra"]["interval"]: event["extra"] for event in events if event["extra"].get("recipe") == RECIPE}
    assert set(announced) >= set(whole_job.days)
    assert all(announced[day]["tokens"] > 0 and announced[day]["sequences"].startswith("sequences@") for day in whole_job.days)


def test_every_try_of_every_task_has_exactly_one_charge(whole_job: WholeJob) -> None:
    keys = {s["run_key"] for s in whole_job.outcome["stages"]}
    charges = [c for c in delta.rows(whole_job.env, "costs") if c["x_RunKey"] in keys and c["ChargeCategory"] == "Usage" and c["x_Phase"] != "idle"]
    assert {c["x_Phase"] for c in charges} >= {"prepare", "train", "checks"}
    charges = [c for c in charges if c["x_Phase"] != "checks"]  # a second row of the same try
    charged = [(c["x_DagId"], c["x_DagRunId"], c["x_TaskId"], c["x_TaskTry"]) for c in charges]
    assert len(whole_job.tries) >= len(keys)
    assert sorted(charged) == whole_job.tries
    assert all(c["BilledCost"] > 0 for c in charges)


def test_every_table_a_stage_writes_was_checked_and_nothing_failed(whole_job: WholeJob) -> None:
    keys = {s["run_key"] for s in whole_job.outcome["stages"]}
    checks = [c for c in delta.rows(whole_job.env, "checks") if c["run_key"] in keys]
    assert {c["table_name"] for c in checks} == set(WRITERS) & set(TABLES)
    assert [c["rule"] for c in checks if not c["passed"] and c["severity"] == "error"] == []


def test_the_forecast_was_written_before_the_training_began(whole_job: WholeJob) -> None:
    build = own_build(whole_job)
    forecast = [f for f in delta.rows(whole_job.env, "forecasts") if f["run_key"] == build["run_keys"]["forecast"]]
    training = [c for c in delta.rows(whole_job.env, "costs") if c["x_RunKey"] == build["run_keys"]["train"]]
    assert {f["metric"] for f in forecast} == {"loss", "accuracy", "cost_usd", "wall_seconds"}
    assert max(f["registered_at"] for f in forecast) < min(c["ChargePeriodStart"] for c in training)
    assert len({f["content_hash"] for f in forecast}) == 1


def test_the_report_has_every_promised_field_and_adds_up(whole_job: WholeJob) -> None:
    summary = report.summary(whole_job.env)
    run = next(r for r in summary["runs"] if r["run_id"] == whole_job.build_run_id)
    assert set(run) >= REPORTED
    assert [name for name in REPORTED if run[name] is None] == []
    assert sum(run["cost_by_phase"].values()) == pytest.approx(run["cost_usd"])
    assert run["checks_failed"] == 0 and run["registered"]


def test_the_model_is_in_the_registry_with_what_it_was_made_from(whole_job: WholeJob) -> None:
    import httpx

    build = own_build(whole_job)
    answer = httpx.get(
        f"{whole_job.env.platform['mlflow_uri']}/api/2.0/mlflow/model-versions/get",
        params={"name": build["model_name"], "version": build["model_version"]},
        auth=mlflow_sign_in(whole_job.env),
        trust_env=False,
    )
    assert answer.status_code == 200
    assert answer.json()["model_version"]["status"] == "READY"


def test_the_registered_version_is_signed_and_its_card_tells_this_run(whole_job: WholeJob, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {s["stage"]: s["run_key"] for s in whole_job.outcome["stages"] if s["stage"] in BUILD_STAGES}
    # Other tests register the same training under other budgets, which have forecasts of their own: this is the job's own version.
    version = next(r for r in delta.rows(whole_job.env, "registrations") if r["run_key"] == keys["register"])
    forecast = next(f for f in delta.rows(whole_job.env, "forecasts") if f["run_key"] == keys["forecast"])
    named, home = f"{version['model_name']}/{version['model_version']}", ["--home", str(whole_job.env.home)]
    assert cli.main(["model", "verify", named, *home]) == 0
    assert cli.main(["model", "card", named, "--stored", *home]) == 0
    card = capsys.readouterr().out
    assert keys["train"] in card
    assert forecast["content_hash"] in card
    for day in whole_job.days:
        assert f"| {day} |" in card


def test_it_told_progress_costs_seconds_and_addresses(whole_job: WholeJob) -> None:
    said = "\n".join(whole_job.said)
    for words in (
        "ingest: started", "register: done in", "Seconds per step", "Runs: cost against accuracy", "/plugin/cost-vs-accuracy", "passwords.json", "about",
    ):  # fmt: skip
        assert words in said, words


def test_a_second_run_recomputes_nothing_and_costs_nothing(whole_job: WholeJob) -> None:
    charges, versions = len(delta.rows(whole_job.env, "costs")), {name: delta.latest(whole_job.env, name) for name in WRITERS}
    said: list[str] = []
    again = launch.run(whole_job.env, RECIPE, 2, echo=said.append)
    assert again["computed"] == 0 and again["cost_usd"] == 0
    assert "Nothing was recomputed" in "\n".join(said)
    first = {s["stage"]: (s["run_key"], s["outputs"]) for s in whole_job.outcome["stages"] if s["stage"] in BUILD_STAGES}
    assert {s["stage"]: (s["run_key"], s["outputs"]) for s in again["stages"]} == first
    assert {name: delta.latest(whole_job.env, name) for name in WRITERS} == versions
    assert len([c for c in delta.rows(whole_job.env, "costs") if c["BilledCost"] > 0]) == charges


def test_reprocessing_a_day_with_the_same_input_reuses_what_is_recorded(whole_job: WholeJob) -> None:
    day = whole_job.days[0]
    again = launch.backfill(whole_job.env, [day], recipe=RECIPE, reprocess=True, echo=lambda _: None)
    first = {s["stage"]: (s["run_key"], s["outputs"]) for s in whole_job.outcome["stages"] if s["label"] == day}
    assert {s["stage"]: (s["run_key"], s["outputs"]) for s in again["stages"]} == first
    assert again["computed"] == 0


def test_a_budget_below_the_forecast_stops_the_run_before_training(whole_job: WholeJob) -> None:
    trained = len(results.of_stage(whole_job.env, "train"))
    with pytest.raises(BudgetExceeded, match=r"(?s)check_budget.*Over budget, nothing was trained.*budget is 0\.0000 USD"):
        launch.run(whole_job.env, RECIPE, 2, echo=lambda _: None, budget_usd=0.00001)
    assert len(results.of_stage(whole_job.env, "train")) == trained


def test_both_dags_are_paused_again_afterwards(whole_job: WholeJob) -> None:
    with AirflowClient(whole_job.env) as client:
        assert [client.dag(dag_id)["is_paused"] for dag_id in ("prepare_corpus", "build_model")] == [True, True]
