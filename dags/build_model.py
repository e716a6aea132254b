"""### Packed corpus → forecast → registered model

`plan > forecast > check_budget > (approve) > train > evaluate > review > register`, one run per recipe.

* **Starts** when the asset `corpus` says that days were prepared and the recipe's minimum of new tokens has arrived since its last
  build (*plan* skips the rest otherwise), or by hand with the form: recipe, budget, what to do over budget.
* **forecast** trains small proxies and writes what the run will reach and cost, before the money is spent.
* **Over budget,** or not worth it (the expected gain over the champion is below what the recipe asks for): the run stops here, or, if the
  recipe says so, *approve* asks a person, with the numbers, and nothing is spent until someone with the role approver answers; who did is written
  down. More than the recipe's budget, asked for by a runner, is such a question too.
* **Budget used up while training:** the training ends with a checkpoint of what it reached, which is evaluated, reviewed and registered like
  any other and named as ended early. A run with a larger budget goes on from there.
* **Again:** a run over the same table versions finds every result recorded, recomputes nothing and costs nothing.

What came out is under *Browse → Cost vs accuracy* and on that tab of this run.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, Param, TriggerRule, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from stage_task import CORPUS, StageOperator, gauntlet_param, recipe_param


class PlanOperator(StageOperator):
    """Pins the table versions of this build; skips the rest of an asset-triggered run while too few new tokens have arrived."""

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        found = super().execute(context)
        if context["dag_run"].run_type == "asset_triggered" and not found["enough"]:
            raise AirflowSkipException(f"{found['new_tokens']:,} new tokens since the last build; the recipe waits for {found['min_new_tokens']:,}.")
        if found["missing"]:
            raise AirflowFailException(found["missing"])
        return found


class TrainOperator(StageOperator):
    """Trains; where a person was to be asked, only with an approval, whatever state somebody gave the task that asks."""

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        asked = context["ti"].xcom_pull(task_ids="forecast")["metrics"]
        if asked["decision"] == "ask":
            answer = context["ti"].xcom_pull(task_ids="approve") or {}
            if answer.get("chosen_options") != [ApprovalOperator.APPROVE]:
                raise AirflowFailException(f"Nothing was trained: {asked['why']}, and nobody approved. Clear the task approve and answer it.")
            who = answer.get("responded_by_user") or {}
            self.arguments = [*self.arguments, f"--approved-by={who.get('name') or who.get('id') or 'unknown'}"]
        return super().execute(context)


with DAG(
    dag_id="build_model",
    doc_md=__doc__,
    description="Forecast, train, evaluate, review and register one model",
    schedule=[CORPUS],
    start_date=datetime(2020, 1, 1, tzinfo=UTC),
    catchup=False,
    is_paused_upon_creation=True,
    max_active_runs=1,  # builds of the same tables would race for the same work; the second then finds it recorded
    params={
        "recipe": recipe_param(),
        "budget_usd": Param(None, type=["null", "number"], minimum=0, title="Budget in USD", description="Replaces the recipe's budget."),
        "over_budget": Param(
            None,
            type=["null", "string"],
            enum=[None, "stop", "ask"],
            title="Over budget",
            description="What to do when the forecast is over the budget: stop, or ask a person. Empty: what the recipe says.",
        ),
        "gauntlet_data": gauntlet_param(),
    },
    tags=["moeline", "model"],
):
    plan = PlanOperator(task_id="plan")
    budget = ["{{ '' if params.budget_usd is none else '--budget-usd=' ~ params.budget_usd }}"]
    over_budget = ["{{ '' if params.over_budget is none else '--over-budget=' ~ params.over_budget }}"]
    asked_by = "{{ '' if params.budget_usd is none else '--asked-by=' ~ (dag_run.triggering_user_name or '') }}"
    forecast = StageOperator(task_id="forecast", arguments=[*budget, *over_budget, asked_by])

    @task.branch(task_id="check_budget", retries=0)
    def check_budget(result: dict[str, Any]) -> str:
        """Go on, ask a person, or stop: what the forecast decided, by money and by the gain it expects over the champion."""
        metrics = result["metrics"]
        if metrics["decision"] == "stop":
            what = "Over budget" if metrics.get("why", "over budget") == "over budget" else "Not worth it"
            raise AirflowFailException(
                f"{what}, nothing was trained: {'; '.join(metrics['gate_sentences'])}. "
                "Trigger again with a larger budget_usd or over_budget=ask, or take a smaller recipe."
            )
        return "approve" if metrics["decision"] == "ask" else "train"

    approve = ApprovalOperator(
        task_id="approve",
        subject="{{ ti.xcom_pull(task_ids='forecast')['metrics']['why'] | capitalize }}: train {{ params.recipe }} anyway?",
        body=(
            "{% set m = ti.xcom_pull(task_ids='forecast')['metrics'] %}"
            "The training would cost **{{ '%.2f' | format(m['cost_usd']) }} USD** (95 %: {{ '%.2f' | format(m['cost_usd_low']) }} to "
            "{{ '%.2f' | format(m['cost_usd_high']) }}) after {{ '%.2f' | format(m['spent_usd']) }} USD for the forecast; "
            "the budget is **{{ '%.2f' | format(m['budget_usd']) }} USD**. "
            "Expected held-out loss: {{ '%.3f' | format(m['loss']) }} nats/token; {{ m['gate_sentences'][1] }}. Nothing is spent until someone answers."
        ),
        defaults="Reject",
        response_timeout=timedelta(days=7),
    )
    # Runs when approved, or when there was nothing to ask; a rejected question skips it.
    train = TrainOperator(task_id="train", arguments=[*budget, *over_budget], trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    evaluate = StageOperator(task_id="evaluate")
    review = StageOperator(task_id="review")
    register = StageOperator(task_id="register", arguments=budget)

    decision = check_budget(forecast.output)
    plan >> forecast >> decision >> [approve, train]
    approve >> train >> evaluate >> review >> register
