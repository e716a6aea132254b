"""What a training may still cost: the recipe's budget, less what was spent and what must be kept for judging the model.

Everything spent counts: the forecast before it and every earlier attempt, killed ones too. Change here: what counts against a budget.
Not here: stopping at it (services/run_control.py), the gate on what a model cost in all (expectations/gates.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.config import Recipe
from jobs.contract import StageResult, TableVersion
from jobs.environment import Environment
from jobs.services import delta, results
from jobs.services.run_control import BUDGET

_JUDGING = ("evaluate", "review")


@dataclass(frozen=True)
class Spending:
    """Dollars. ``limit``: the recipe's budget, or what a person approved beyond it; ``forecast`` and ``earlier`` attempts took their part; ``kept`` for
    what comes after. ``forecast_key``: run key of the forecast this training was decided on."""

    limit: float
    forecast: float
    earlier: float
    kept: float
    forecast_key: str | None = None

    @property
    def spent(self) -> float:
        return self.forecast + self.earlier

    @property
    def left(self) -> float:
        """For this attempt; negative when more was spent."""
        return self.limit - self.spent - self.kept


def of_training(env: Environment, recipe: Recipe, run_key: str, inputs: Mapping[str, str]) -> Spending:
    """Where the training ``run_key`` stands. Evaluation and review are expected to cost what they did last time for this recipe (0 the first time)."""
    forecast = forecast_of(env, recipe, inputs)
    last = [results.newest(env, stage, recipe=recipe.name) for stage in _JUDGING]
    kept, cost = sum(r.cost_usd for r in last if r), forecast.cost_usd if forecast else 0.0
    return Spending(limit(recipe, forecast), cost, _charged(env, run_key), kept, forecast.run_key if forecast else None)


def limit(recipe: Recipe, forecast: StageResult | None) -> float:
    """The budget; or, where the forecast was above it and a person said go on, the most that was forecast to them (95 %)."""
    if forecast is None or forecast.metrics.get("decision") != "ask":
        return recipe.budget_usd
    return max(recipe.budget_usd, forecast.cost_usd + float(forecast.metrics["cost_usd_high"]))


def may_go_on(env: Environment, recipe: Recipe, ended: StageResult) -> bool:
    """Whether a recorded training ended early for a budget smaller than the recipe's is now."""
    return ended.metrics.get("ended_early") == BUDGET and limit(recipe, forecast_of(env, recipe, ended.inputs)) > ended.metrics["budget_usd"]


def forecast_of(env: Environment, recipe: Recipe, inputs: Mapping[str, str]) -> StageResult | None:
    """The recipe's forecast on the same sequences that is on record: the one that was shown before this training began."""
    config = recipe.config_hash("forecast")
    same = [r for r in results.of_stage(env, "forecast") if r.config_hash == config and r.inputs.get("sequences") == inputs.get("sequences")]
    return same[-1] if same else None


def _charged(env: Environment, run_key: str) -> float:
    import pyarrow.dataset as ds

    newest: TableVersion | None = delta.latest(env, "costs")
    if newest is None:
        return 0.0
    rows = delta.dataset(env, newest).to_table(columns=["BilledCost"], filter=ds.field("x_RunKey") == run_key)
    return float(sum(rows["BilledCost"].to_pylist()))
