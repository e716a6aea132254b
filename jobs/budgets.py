"""What may be spent in a calendar month ([budgets] of infra/env/<name>.toml), in all and by recipe, against what the ledger says was spent.

Change here: how a budget is read, when it warns or refuses. Not here: the budget of one run (Recipe.budget_usd), prices.

    [budgets]
    month_usd = 500.0
    [budgets.recipes]
    tiny = 5.0
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.contract import BudgetExceeded, MoelineError
from jobs.environment import Environment
from jobs.services import charges, delta

WARN_AT = 0.8
STAGES = ("forecast", "train")  # what a spent budget refuses: the stages that spend most


def limits(env: Environment) -> dict[str | None, float]:
    """Budgets in USD by recipe; None: of everything. Raises MoelineError for a setting that is none."""
    unknown = set(env.budgets) - {"month_usd", "recipes"}
    given: dict[str | None, Any] = {None: env.budgets["month_usd"]} if "month_usd" in env.budgets else {}
    given |= dict(env.budgets.get("recipes", {}))
    wrong = [name for name, usd in given.items() if not isinstance(usd, int | float) or isinstance(usd, bool) or usd < 0]
    if unknown or wrong:
        what = f"knows month_usd and recipes, not {', '.join(sorted(unknown))}" if unknown else f"{wrong[0] or 'month_usd'} is not a number of 0 or more"
        raise MoelineError(f"[budgets] of {env.prices.sheet}: {what}. See infra/env/cloud_gpu.toml.")
    return {name: float(usd) for name, usd in given.items()}


def status(env: Environment, *, now: dt.datetime | None = None, costs: Sequence[Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
    """One dict per budget: limit, spent this month, projection to its end at this pace, and level: ok, warning (from 80 %) or over.

    ``costs``: rows of the ledger, where they were read already.
    """
    limited = limits(env)
    if not limited:
        return []
    now = now or dt.datetime.now(dt.UTC)
    start, end = charges.month_of(now.timestamp())
    rows = [r for r in (delta.rows(env, "costs") if costs is None else costs) if start <= r["ChargePeriodStart"] < end]
    elapsed = max(1.0, (now - start).total_seconds()) / (end - start).total_seconds()
    found = []
    for name, limit in limited.items():
        spent = sum(r["BilledCost"] for r in rows if name is None or r["x_Recipe"] == name)
        level = "over" if spent >= limit else "warning" if spent >= WARN_AT * limit or spent / elapsed > limit else "ok"
        found.append({
            "recipe": name, "month": start.strftime("%Y-%m"), "limit_usd": limit, "spent_usd": spent, "left_usd": limit - spent,
            "projected_usd": spent / elapsed, "level": level,
        })  # fmt: skip
    return found


def left(env: Environment, recipe: str) -> float | None:
    """Dollars this month that ``recipe`` may still spend: the least of its own budget and everybody's; None without a budget."""
    return min((s["left_usd"] for s in status(env) if s["recipe"] in (None, recipe)), default=None)


def refuse_if_spent(env: Environment, stage: str, recipe: str) -> None:
    """Raises BudgetExceeded before ``stage`` starts when a month's budget of it is spent."""
    if stage not in STAGES or not env.budgets:
        return
    for one in status(env):
        if one["recipe"] in (None, recipe) and one["level"] == "over":
            whose = f"of recipe {recipe}" if one["recipe"] else "of this environment"
            raise BudgetExceeded(
                f"{stage} was not started: {one['spent_usd']:.4f} of the budget {whose} for {one['month']}, {one['limit_usd']:.4f} {env.prices.currency}, "
                f"are spent. Raise it in [budgets] of {env.prices.sheet}, or wait for the next month."
            )


def render(found: list[Mapping[str, Any]]) -> str:
    if not found:
        return "No budget is set. Set month_usd, or recipes, in [budgets] of the environment file.\n"
    lines = [
        f"{s['recipe'] or 'everything'}: {s['spent_usd']:.4f} of {s['limit_usd']:.4f} USD in {s['month']}, {s['projected_usd']:.4f} by its end at this pace: "
        f"{s['level']}"
        for s in found
    ]
    return "\n".join(lines) + "\n"
