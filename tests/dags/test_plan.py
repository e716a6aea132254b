"""Whether a build goes on after its plan: by hand always when there is data, by the asset only when enough new tokens have arrived."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

stage_task = pytest.importorskip("stage_task")
build_model = pytest.importorskip("build_model")


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch):
    def run(run_type: str, **found: Any) -> dict[str, Any]:
        answer = {"enough": True, "missing": "", "new_tokens": 5, "min_new_tokens": 10, "inputs": {"sequences": "sequences@7"}, **found}
        monkeypatch.setattr(stage_task.StageOperator, "execute", lambda self, context: answer)
        return build_model.PlanOperator(task_id="plan").execute({"dag_run": SimpleNamespace(run_type=run_type)})

    return run


def test_enough_new_tokens_go_on_however_the_run_started(plan) -> None:
    assert plan("asset_triggered")["inputs"] == {"sequences": "sequences@7"}
    assert plan("manual")["enough"]


def test_too_few_new_tokens_skip_only_a_run_of_the_asset(plan) -> None:
    with pytest.raises(build_model.AirflowSkipException, match="5 new tokens since the last build; the recipe waits for 10"):
        plan("asset_triggered", enough=False)
    assert plan("manual", enough=False)["new_tokens"] == 5


def test_no_data_of_the_recipe_makes_the_asset_wait_and_refuses_a_build_by_hand(plan) -> None:
    with pytest.raises(build_model.AirflowSkipException):
        plan("asset_triggered", enough=False, missing="A model needs sequences")
    with pytest.raises(build_model.AirflowFailException, match="A model needs sequences"):
        plan("manual", enough=False, missing="A model needs sequences")
