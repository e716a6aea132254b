"""The DAG files parse, have the right order, and only launch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import own_recipes
from jobs.launch import BUILD, PREPARE, TASKS
from jobs.recipes import RECIPES


def edges(dag: dict[str, Any]) -> dict[str, list[str]]:
    return {name: task["downstream"] for name, task in dag["tasks"].items()}


def test_both_dags_parse_without_errors(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    assert sorted(parsed["dags"]) == ["build_model", "prepare_corpus"]


def test_prepare_corpus_runs_its_stages_in_order(parsed: dict[str, Any]) -> None:
    assert edges(parsed["dags"]["prepare_corpus"]) == {
        "ingest": ["clean"],
        "clean": ["deduplicate"],
        "deduplicate": ["decontaminate"],
        "decontaminate": ["pack"],
        "pack": ["summarise"],
        "summarise": [],
    }


def test_build_model_forecasts_and_decides_before_it_trains(parsed: dict[str, Any]) -> None:
    assert edges(parsed["dags"]["build_model"]) == {
        "plan": ["forecast"],
        "forecast": ["check_budget"],
        "check_budget": ["approve", "train"],
        "approve": ["train"],
        "train": ["evaluate"],
        "evaluate": ["review"],
        "review": ["register"],
        "register": [],
    }
    # Without a question (approve skipped) training goes on; after a failure or a refusal it does not.
    assert parsed["dags"]["build_model"]["tasks"]["train"]["rule"] == "none_failed_min_one_success"


def test_the_command_line_shows_the_tasks_in_the_order_of_the_dags(parsed: dict[str, Any]) -> None:
    for dag_id in (PREPARE, BUILD):
        followers = edges(parsed["dags"][dag_id])
        order = list(TASKS[dag_id])
        assert sorted(order) == sorted(followers)
        assert all(order.index(task) < order.index(later) for task, after in followers.items() for later in after)


def test_only_deduplication_takes_its_turn_over_all_days(parsed: dict[str, Any]) -> None:
    tasks = parsed["dags"]["prepare_corpus"]["tasks"]
    assert {name: task["at_once"] for name, task in tasks.items() if task["at_once"]} == {"deduplicate": 1}


def test_every_stage_is_retried_and_the_decision_is_not(parsed: dict[str, Any]) -> None:
    for dag in parsed["dags"].values():
        for name, task in dag["tasks"].items():
            assert task["retries"] == (0 if name in ("check_budget", "approve") else 2), name


def test_prepare_corpus_has_real_data_intervals_and_does_not_catch_up(parsed: dict[str, Any]) -> None:
    dag = parsed["dags"]["prepare_corpus"]
    assert dag["timetable"] == "CronDataIntervalTimetable"  # a plain cron string would give intervals of no width
    assert dag["catchup"] is False


def test_a_day_is_announced_when_its_documents_were_accounted_for_and_build_model_waits_for_it(parsed: dict[str, Any]) -> None:
    outlets = {name: task["outlets"] for name, task in parsed["dags"]["prepare_corpus"]["tasks"].items() if task["outlets"]}
    assert outlets == {"summarise": ["corpus"]}
    assert parsed["dags"]["build_model"]["timetable"] == "AssetTriggeredTimetable"


def test_nothing_starts_before_a_person_unpauses_it(parsed: dict[str, Any]) -> None:
    assert [dag["paused"] for dag in parsed["dags"].values()] == [True, True]


def test_the_forms_offer_exactly_the_recipes_there_are_and_take_any_name_of_one(parsed: dict[str, Any]) -> None:
    for dag in parsed["dags"].values():
        schema = dag["params"]["recipe"]["schema"]
        assert schema["examples"] == list(RECIPES) and "enum" not in schema
        assert schema["pattern"] == f"^{own_recipes.NAME.pattern}$"


def test_the_forms_offer_the_recipes_of_the_home_that_have_a_name_to_run_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stage_task
    from airflow.sdk.exceptions import ParamValidationError

    monkeypatch.setenv("MOELINE_HOME", str(tmp_path))
    assert stage_task.own_recipes() == own_recipes.names(tmp_path) == []
    (tmp_path / "recipes").mkdir()
    for name in ("more-docs", "tiny", "-debug", "Capital", "a b", "x" * 65, ".hidden"):
        (tmp_path / "recipes" / f"{name}.json").write_text("{}")
    assert stage_task.own_recipes() == own_recipes.names(tmp_path) == ["more-docs"]
    param = stage_task.recipe_param()
    assert param.resolve("more-docs") == "more-docs"
    for name in ("--debug", "../x", "x;y", ""):
        with pytest.raises(ParamValidationError):
            param.resolve(name)


def test_the_build_form_takes_a_budget_and_refuses_a_negative_one(parsed: dict[str, Any]) -> None:
    schema = parsed["dags"]["build_model"]["params"]["budget_usd"]["schema"]
    assert schema["type"] == ["null", "number"]
    assert schema["minimum"] == 0


def test_the_build_form_offers_to_ask_instead_of_stopping(parsed: dict[str, Any]) -> None:
    assert parsed["dags"]["build_model"]["params"]["over_budget"]["schema"]["enum"] == [None, "stop", "ask"]


def test_dags_explain_themselves(parsed: dict[str, Any]) -> None:
    for dag in parsed["dags"].values():
        assert dag["doc"].startswith("###")
        assert "moeline" in dag["tags"]


def test_parsing_is_quick_and_loads_no_engine_and_none_of_our_jobs(parsed: dict[str, Any]) -> None:
    heavy = {"torch", "pyspark", "ray", "mlflow", "pandas", "numpy", "pyarrow", "deltalake", "great_expectations", "transformers"}
    assert heavy.isdisjoint(parsed["all_loaded"])
    assert {"jobs", "models", "expectations"}.isdisjoint(parsed["loaded"])
    assert parsed["seconds"] < 5.0
