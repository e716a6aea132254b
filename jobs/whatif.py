"""``moeline costs whatif``: what a recipe's training would cost by another price sheet, with the interval of its forecast.

Change here: how long it is taken to take there. Not here: the sheets (infra/env/*.toml), the forecast (jobs/stages/forecast.py).

Where the other environment gives the training as many cores and GPUs as this one, it takes as long as its recorded forecast says. Where it does
not, nobody has timed it: then it is training FLOPs / (peak of the machines x share of it used), with the sheet's range of that share as the
interval and its geometric mean as the point. Launch, restarts and idle machines are not in either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jobs.config import Recipe
from jobs.contract import MoelineError, canonical
from jobs.environment import Environment
from jobs.price_sheet import PURCHASES, Resources
from jobs.services import delta, results

NAMES = ("predicted", "low", "high")


def whatif(here: Environment, recipe: Recipe, there: Environment, *, purchase: str | None = None, gpus: float | None = None) -> dict[str, Any]:
    """What ``--json`` prints. ``gpus``: instead of what ``there`` gives the training. Raises MoelineError where time or price are not known."""
    held = _held(there, gpus)
    sheet = there.prices.bought(purchase or there.prices.purchase)
    flops = recipe.train.model.flops_per_token * recipe.train.steps * recipe.train.tokens_per_step
    seconds, basis, notes = _seconds(here, recipe, there, held, flops)
    hourly = sheet.hourly(held)
    found = {
        "recipe": recipe.name, "environment": there.name, "purchase": sheet.purchase, "resources": canonical(held), "currency": sheet.currency,
        "hourly": hourly, "flops": flops, "basis": basis, "seconds": seconds, "cost": {name: s * hourly / 3600.0 for name, s in seconds.items()},
        "energy_kwh": {name: sheet.energy_kwh(held, s) for name, s in seconds.items()}, "source": _source(there, held), "notes": notes,
    }  # fmt: skip
    return found | {"others": _others(there, held, seconds["predicted"], sheet.purchase), "over_budget": found["cost"]["predicted"] > recipe.budget_usd}


def _held(there: Environment, gpus: float | None) -> Resources:
    held = there.stage_resources("train")
    if gpus is None:
        return held
    if not held.gpus or gpus <= 0:
        raise MoelineError(f"--gpus {gpus:g}: environment {there.name} gives a training {held.gpus:g} GPUs. Name a machine with GPUs in its [resources.train].")
    scale = gpus / held.gpus
    return replace(held, cores=held.cores * scale, memory_gib=held.memory_gib * scale, gpus=gpus)


def _seconds(here: Environment, recipe: Recipe, there: Environment, held: Resources, flops: float) -> tuple[dict[str, float], str, list[str]]:
    mine = here.stage_resources("train")
    if (mine.cores, mine.gpus) == (held.cores, held.gpus):
        row, notes = _forecast(here, recipe)
        return {name: float(row[name]) for name in NAMES}, "forecast", notes
    machine = there.prices.instance(held.instance, _today()) if held.instance else None
    if machine is None or not machine.peak_tflops or not machine.mfu_low or not machine.mfu_high:
        raise MoelineError(
            f"How long {recipe.name} would train in {there.name} is not known: it holds {held.cores:g} cores and {held.gpus:g} GPUs there, "
            f"{mine.cores:g} and {mine.gpus:g} here, and its sheet gives no peak_tflops, mfu_low and mfu_high for "
            f"{held.instance or 'a machine type (set instance in [resources.train])'}. Add them to [[prices.instances]], or forecast there."
        )
    part = held.gpus / machine.gpus if machine.gpus else machine.share(held)
    slow, fast = (flops / (machine.peak_tflops * 1e12 * part * mfu) for mfu in (machine.mfu_low, machine.mfu_high))
    about = f"not timed there: {machine.mfu_low:.0%} to {machine.mfu_high:.0%} of {machine.peak_tflops * part:,.0f} TFLOP/s is an assumption of the sheet"
    return {"predicted": math.sqrt(slow * fast), "low": fast, "high": slow}, "flops", [about]


def _forecast(env: Environment, recipe: Recipe) -> tuple[Mapping[str, Any], list[str]]:
    made = results.newest(env, "forecast", recipe=recipe.name)
    rows = [r for r in delta.rows(env, "forecasts", where_in=[made.run_key]) if r["metric"] == "wall_seconds"] if made is not None else []
    if not rows:
        raise MoelineError(f"Recipe {recipe.name} has no forecast yet, which says how long it trains. Run `moeline stage forecast --recipe {recipe.name}`.")
    other = rows[0]["target"] != json.dumps(canonical(recipe.train), sort_keys=True)
    return rows[0], ["the recipe's training was changed after this forecast: forecast it again"] if other else []


def _source(there: Environment, held: Resources) -> str:
    if held.instance:
        machine = there.prices.instance(held.instance, _today())
        return f"{machine.name}, prices from {machine.valid_from}: {machine.source}"
    sheet = there.prices.on(_today())
    return f"prices from {sheet.valid_from}: {sheet.source or 'no source given'}"


def _others(there: Environment, held: Resources, seconds: float, chosen: str) -> dict[str, float | None]:
    """What the point costs however else the machine can be bought; None: the sheet has no such price."""
    found: dict[str, float | None] = {}
    for purchase in (p for p in PURCHASES if p != chosen):
        try:
            found[purchase] = there.prices.bought(purchase).hourly(held) * seconds / 3600.0
        except MoelineError:
            found[purchase] = None
    return found


def _today() -> Any:
    import datetime as dt

    return dt.datetime.now(dt.UTC).date()


def render(found: Mapping[str, Any]) -> str:
    cost, seconds = found["cost"], found["seconds"]
    held = found["resources"]
    lines = [
        f"Training {found['recipe']} in {found['environment']}, {found['purchase']}: {cost['predicted']:,.4f} {found['currency']} "
        f"(95 %: {cost['low']:,.4f} to {cost['high']:,.4f})" if found["basis"] == "forecast" else
        f"Training {found['recipe']} in {found['environment']}, {found['purchase']}: {cost['predicted']:,.2f} {found['currency']} "
        f"(the sheet's range: {cost['low']:,.2f} to {cost['high']:,.2f})",
        f"{seconds['predicted'] / 3600:,.3f} hours ({seconds['low'] / 3600:,.3f} to {seconds['high'] / 3600:,.3f}) at {found['hourly']:,.4f} an hour for "
        f"{held['cores']:g} cores, {held['memory_gib']:g} GiB, {held['gpus']:g} GPUs; about {found['energy_kwh']['predicted']:,.3f} kWh (estimated)",
        *(f"bought {name}: {'missing' if usd is None else f'{usd:,.4f}'}" for name, usd in found["others"].items()),
        f"price: {found['source']}", *(f"Note: {note}." for note in found["notes"]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
