"""``moeline forecast plan``: the proxies that best constrain a recipe's forecast for a share of its cost, their price here, and which are finished.

Shares are of training FLOPs, so the same recipe gets the same plan everywhere; dollars are what the price sheet of this environment makes of the
seconds that proxies took here. What was never timed here is shown as missing, never as 0.
Change here: what is priced, what counts as finished, how it reads. Not here: the rule of proxies (jobs/proxies.py), the design (models/scaling_plan.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs import proxies
from jobs.config import Recipe, TrainConfig
from jobs.contract import MoelineError, StageResult, config_hash
from jobs.environment import Environment
from jobs.forecast_command import table
from jobs.services import delta, results
from jobs.sizing import training_flops

DEFAULT_SHARE = 0.1


@dataclass(frozen=True)
class Record:
    """The forecast of a recipe that was recorded last, and its rows by metric."""

    result: StageResult
    rows: Mapping[str, Mapping[str, Any]]

    def proxies(self) -> list[tuple[TrainConfig, Mapping[str, Any]]]:
        from jobs.services.training import train_config

        return [(train_config(p["config"]), p["reached"]) for p in json.loads(self.rows["loss"]["proxies"])]


@dataclass(frozen=True)
class Pace:
    """Wall seconds of a training FLOP for proxies and for the target, before it: ``fixed`` seconds; None: nobody timed it here."""

    proxy: float | None
    target: float | None
    fixed: float
    basis: str


def plan(env: Environment, recipe: Recipe, *, share: float | None = None, budget_usd: float | None = None) -> dict[str, Any]:
    """What ``--json`` prints. Raises MoelineError when the budget buys too few proxies, or dollars are asked for where no price is known."""
    train, record = recipe.train, _newest(env, recipe)
    pace, hourly = _pace(env, record, train), env.prices.hourly(env.stage_resources("forecast"))
    if budget_usd is not None:
        share = _share_of(budget_usd, recipe, env, pace, hourly)
    share = DEFAULT_SHARE if share is None else share
    done, reuse = _finished(env, recipe)
    laws, believed = _laws(record)
    found, configs = proxies.planned(train, share, finished=done, laws=laws)
    rows = [_row(proxy, train, pace, hourly, proxy in done) for proxy in configs]
    still = [row for row in rows if not row["finished"]]
    running = None if pace.proxy is None else sum(row["usd"] for row in still)
    launch = pace.fixed * hourly / 3600.0 if still else 0.0
    return {
        "recipe": recipe.name, "environment": env.name, "currency": env.prices.currency, "share": share, "budget_usd": budget_usd, "law": believed,
        "target": {
            "params": proxies.scaling_params(train), "tokens": train.steps * train.tokens_per_step, "flops": training_flops(train),
            "usd": None if pace.target is None else training_flops(train) * pace.target * env.prices.hourly(env.stage_resources("train")) / 3600.0,
        },
        "proxies": rows, "planned_share": found.cost, "proxies_usd": running, "launch_usd": launch, "usd": None if running is None else running + launch,
        "timing": pace.basis, "expected": {**asdict(found.judged), "half_width": found.judged.half_width}, "recipes_own": _own(recipe, laws),
        "learning_rate": _transfer(train), "reuse": reuse, "notes": _notes(recipe, pace),
    }  # fmt: skip


def _newest(env: Environment, recipe: Recipe) -> Record | None:
    made = results.newest(env, "forecast", recipe=recipe.name)
    rows = {} if made is None else {r["metric"]: r for r in delta.rows(env, "forecasts", where_in=[made.run_key])}
    return Record(made, rows) if made is not None and "loss" in rows else None


def _laws(record: Record | None) -> tuple[Any, str]:
    """The laws that the recipe's last forecast found plausible, else the published ones."""
    from models.scaling import LossLaw

    fitted = [] if record is None else list(json.loads(record.rows["loss"]["law"])["laws"].values())
    usable = [LossLaw(**law) for law in fitted if law["A"] > 0 and (law["B"] > 0 or law["form"] == "power")]
    if record is None or not usable:
        return None, "published for dense models (Hoffmann et al. 2022; Besiroglu et al. 2024)"
    return usable, f"fitted by the forecast {record.result.run_key[:12]}: {', '.join(law.form for law in usable)}"


def _pace(env: Environment, record: Record | None, train: TrainConfig) -> Pace:
    from jobs.stages import forecast

    held, fixed = env.stage_resources("forecast"), forecast.USUAL_LAUNCH_SECONDS
    beside = 1 if held.gpus else forecast.PROCESSES
    if record is not None:
        law = json.loads(record.rows["wall_seconds"]["law"])
        trained = record.proxies()
        proxy = sum(r["seconds"] + r["held_out_seconds"] for _, r in trained) / beside / sum(proxies.flops(p) for p, _ in trained)
        asked = train_config_of(record)
        target = law["step_seconds"] / (asked.model.flops_per_token * asked.tokens_per_step)
        fixed = (record.result.metrics.get("launch_seconds") or fixed) + law["timed_steps"] * law["step_seconds"]
        return Pace(proxy, target, fixed, f"seconds of the {len(trained)} proxies and of the timed steps of forecast {record.result.run_key[:12]}")
    machine = env.prices.instance(held.instance, _today()) if held.instance else None
    if machine is not None and machine.peak_tflops and machine.mfu_low and machine.mfu_high:
        rate = machine.peak_tflops * 1e12 * machine.share(held) * math.sqrt(machine.mfu_low * machine.mfu_high)
        return Pace(1 / rate, 1 / rate, fixed, f"not timed here: {machine.mfu_low:.0%} to {machine.mfu_high:.0%} of the peak of {machine.name} is assumed")
    return Pace(None, None, fixed, "not timed here")


def train_config_of(record: Record) -> TrainConfig:
    """The target of a recorded forecast."""
    from jobs.services.training import train_config

    return train_config(json.loads(record.rows["loss"]["target"]))


def _today() -> Any:
    import datetime as dt

    return dt.datetime.now(dt.UTC).date()


def _share_of(budget_usd: float, recipe: Recipe, env: Environment, pace: Pace, hourly: float) -> float:
    """The share of the training's FLOPs that proxies may take for so many dollars, launch included."""
    if not 0 < budget_usd < math.inf:
        raise MoelineError(f"--budget must be a number of {env.prices.currency} above 0, not {budget_usd:g}.")
    if pace.proxy is None:
        raise MoelineError(
            f"A plan for {budget_usd:g} {env.prices.currency} needs to know how long proxies of {recipe.name} take in {env.name}, and none was timed there. "
            f"Give --share, or run `moeline stage forecast --recipe {recipe.name}` once, or name a machine with peak_tflops in [resources.forecast]."
        )
    left = budget_usd - pace.fixed * hourly / 3600.0
    if left <= 0:
        raise MoelineError(
            f"{budget_usd:g} {env.prices.currency} do not pay for starting the proxies and timing the target, which took {pace.fixed:.0f} s here, "
            f"{pace.fixed * hourly / 3600.0:.4f} {env.prices.currency}. Give a larger --budget."
        )
    return min(proxies.MAX_SHARE, left / (pace.proxy * training_flops(recipe.train) * hourly / 3600.0))


def _finished(env: Environment, recipe: Recipe) -> tuple[list[TrainConfig], str]:
    """Proxies of the recipe that are on record for the sequences and questions it would read now, and that in words."""
    from jobs import inputs
    from jobs.stages import forecast

    try:
        now = inputs.resolve_inputs(env, "forecast", forecast, recipe, None, {}).versions
    except MoelineError:
        return [], "nothing is prepared for this recipe here, so no proxy can be finished"
    made = [r for r in results.of_stage(env, "forecast") if dict(r.inputs) == now and "sequences_digest" in r.metrics]
    rows = {r["run_key"]: r for r in delta.rows(env, "forecasts", where_in=[r.run_key for r in made]) if r["metric"] == "loss"}
    found: list[TrainConfig] = []
    for result in made:
        for config, _ in Record(result, {"loss": rows[result.run_key]}).proxies() if result.run_key in rows else ():
            name = forecast.proxy_identity(config, result.metrics["sequences_digest"], result.metrics["questions_digest"])
            same = proxies.is_proxy_of(config, recipe.train) and result.metrics["suite_hash"] == config_hash(recipe.suite) and config not in found
            if same and (env.artifacts / "proxies" / name / "result.json").is_file():
                found.append(config)
    return found, f"{len(found)} finished proxies of this recipe on the same sequences and questions are on record"


def _row(proxy: TrainConfig, train: TrainConfig, pace: Pace, hourly: float, finished: bool) -> dict[str, Any]:
    flops = proxies.flops(proxy)
    seconds = 0.0 if finished else None if pace.proxy is None else flops * pace.proxy
    return {
        "d_model": proxy.model.d_model, "n_heads": proxy.model.n_heads, "params": proxies.scaling_params(proxy), "tokens": proxy.tokens, "steps": proxy.steps,
        "learning_rate": proxy.learning_rate, "flops": flops, "share": flops / training_flops(train), "seconds": seconds,
        "usd": None if seconds is None else seconds * hourly / 3600.0, "finished": finished,
    }  # fmt: skip


def _own(recipe: Recipe, laws: Any) -> dict[str, Any]:
    """The same judgement of the proxies that the recipe has now."""
    from models import scaling_plan

    train = recipe.train
    judged = scaling_plan.judge(
        [proxies.candidate(p, 0.0) for p in recipe.proxies], (proxies.scaling_params(train), train.steps * train.tokens_per_step),
        laws or scaling_plan.PUBLISHED,
    )  # fmt: skip
    share = sum(map(proxies.flops, recipe.proxies)) / training_flops(train)
    return {"proxies": len(recipe.proxies), "share": share, **asdict(judged), "half_width": judged.half_width}


def _transfer(train: TrainConfig) -> str:
    if train.model.base_width:
        return f"{train.learning_rate:g} at width {train.model.base_width}, moved to every width by muP's table (ModelConfig.base_width)"
    return f"{train.learning_rate:g} at every width, weights drawn {'by width' if train.model.init == 'by_width' else 'alike at every width'}"


def _notes(recipe: Recipe, pace: Pace) -> list[str]:
    notes = []
    if recipe.train.model.init != "by_width":
        notes.append("weights are drawn alike at every width, so nothing says that narrow proxies follow the target's law: set init='by_width' and base_width")
    if pace.proxy is None:
        notes.append("no price: nothing of this recipe was timed in this environment yet, and its sheet names no machine with a peak")
    notes.append("the questions that proxies answer are in no share; they take a second or two each on the CPU recipes")
    return notes


def as_own_recipe(env: Environment, recipe: Recipe, found: Mapping[str, Any], name: str) -> bool:
    """Keep the recipe with these proxies as the own recipe ``name``; False when exactly it was there already."""
    from dataclasses import replace

    from jobs import own_recipes, recipes

    pairs = tuple((row["n_heads"], row["tokens"]) for row in found["proxies"])
    if recipe.name in recipes.RECIPES:
        own = own_recipes.OwnRecipe(base=recipe.name, tokens=recipe.tokens, proxies=pairs, why=f"proxies planned for {found['share']:.1%} of its training")
    else:
        own = replace(own_recipes.read(env.home, recipe.name), proxies=pairs)
    return own_recipes.save(env.home, name, own)


def render(found: Mapping[str, Any]) -> str:
    """The plan as text for a terminal."""
    target, expected, own, currency = found["target"], found["expected"], found["recipes_own"], found["currency"]
    lines = [
        f"Proxies of {found['recipe']} for at most {found['share']:.1%} of its training's {target['flops']:.3g} FLOPs "
        f"({target['params']:.4g} parameters, {target['tokens']:.4g} tokens)", "",
    ]  # fmt: skip
    rows = [
        [
            str(r["d_model"]), f"{r['params']:.4g}", f"{r['tokens']:,}", f"{r['steps']:,}", f"{100 * r['share']:.2f}", _money(r["usd"]),
            "finished" if r["finished"] else "",
        ]
        for r in found["proxies"]
    ]  # fmt: skip
    lines += table(("width", "parameters", "tokens", "steps", "% of training", currency, ""), rows)
    lines += [
        "",
        f"Together {found['planned_share']:.2%} of the training, {_money(found['proxies_usd'])} {currency}, and {_money(found['launch_usd'])} to start them"
        f"{'' if target['usd'] is None else ' and time the target'}; the training itself: {_money(target['usd'])} {currency}. ({found['timing']})",
        f"Expected 95 % interval of the loss: ±{expected['half_width']:.1%} (noise ±{1.96 * expected['noise']:.1%}, form of the law "
        f"±{1.96 * expected['doubt']:.1%}).",
        f"The recipe's own {own['proxies']} proxies: ±{own['half_width']:.1%} for {own['share']:.1%} of the training.",
        f"Law believed: {found['law']}.", f"Learning rate: {found['learning_rate']}.", f"Reuse: {found['reuse']}.",
    ]  # fmt: skip
    return "\n".join([*lines, "", *(f"Note: {note}." for note in found["notes"])]).rstrip() + "\n"


def _money(usd: float | None) -> str:
    return "missing" if usd is None else f"{usd:,.4f}"
