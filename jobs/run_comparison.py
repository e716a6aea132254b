"""Two model builds side by side: what their recipes asked for differently, on which data, what the one cost more, what it answers better.

Change here: what is compared of two runs. Not here: paired statistics (jobs/compare.py), where settings are kept (services/configs.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs import compare
from jobs.config import PHASES
from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import configs, report, responses
from jobs.terminal import text_console

RUN = ("run_id", "key", "recipe", "suite", "status", "model_version", "finished_at", "cost_usd", "accuracy", "accuracy_stderr", "loss", "tokens")
COLUMNS = ("kind", "name", "a", "b", "difference", "low", "high", "p_adjusted", "n")
LEVELS = ("average", "category", "task")
_TWICE = ("target", "suite")  # a forecast's config repeats the settings of the training and the suite it predicts


def of_runs(
    env: Environment, records: report.Records, a: Mapping[str, Any], b: Mapping[str, Any], compared: Mapping[str, Any] | None = None
) -> dict[str, Any]:  # fmt: skip
    """Everything about runs ``a`` and ``b`` (as of services/report.py), differences always B minus A. ``compared``: what compare.py found of them already.

    settings    {setting, a, b} where the recipes differ; None when a run was recorded before settings were kept
    only_a, only_b   data days that one of them trained on and the other did not
    effects     paired, in shares of items: the suite's own average, other averages (of Foundry's gauntlet), categories, tasks; empty with the reason in
                ``problem``
    costs       {stage, a, b, difference} in USD; a stage that one of them has no charge for is missing there, not free
    """
    asked_a, asked_b = (_asked(env, records, run) for run in (a, b))
    effects, problem = (_ordered(compared), None) if compared else _effects(env, a, b)
    average = effects[0] if effects else None
    more = b["cost_usd"] - a["cost_usd"] if a["cost_usd"] is not None and b["cost_usd"] is not None else None
    gain = 100 * average["difference"] if average else None
    return {
        "a": {k: a[k] for k in RUN}, "b": {k: b[k] for k in RUN},
        "settings": None if asked_a is None or asked_b is None else configs.differences(asked_a, asked_b),
        "only_a": sorted(set(a["days"]) - set(b["days"])), "only_b": sorted(set(b["days"]) - set(a["days"])),
        "effects": effects, "problem": problem, "costs": _costs(a, b), "cost_difference_usd": more,
        # what a point more costs: only where B is both better and dearer is that a price
        "usd_per_point": more / gain if more is not None and gain is not None and gain > 0 and more > 0 else None,
    }  # fmt: skip


def beside(env: Environment, compared: Mapping[str, Any]) -> dict[str, Any] | None:
    """``of_runs`` of the two models that compare.py ``compared``; None where one of them is not a build of this home (a folder, a file)."""
    keys = [compared[side]["evaluation"] for side in ("a", "b")]
    if None in keys:
        return None
    records = report.Records(env)
    builds = {run["run_keys"].get("evaluate"): run for run in report.runs_of(records, checks=False)}
    return of_runs(env, records, builds[keys[0]], builds[keys[1]], compared) if builds.keys() >= set(keys) else None


def rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The comparison as one table with COLUMNS, for CSV: scores in shares, costs in USD, settings as they are."""
    blank = dict.fromkeys(COLUMNS)
    scores = [
        {
            "kind": e["level"],
            "name": e["name"],
            "a": e["accuracy_a"],
            "b": e["accuracy_b"],
            **{k: e[k] for k in ("difference", "low", "high", "p_adjusted", "n")},
        }
        for e in found["effects"]
    ]
    costs = [{**blank, "kind": "cost_usd", "name": c["stage"], **{k: c[k] for k in ("a", "b", "difference")}} for c in found["costs"]]
    settings = [{**blank, "kind": "setting", "name": s["setting"], "a": s["a"], "b": s["b"]} for s in found["settings"] or []]
    return [*scores, *costs, *settings]


def _asked(env: Environment, records: report.Records, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Every setting behind a run, by stage; None when one of its stages was recorded without."""
    own = [r for stage, key in run["run_keys"].items() for r in records.by_stage[stage] if r.run_key == key]
    packed = [r for r in records.corpus(own[0].inputs.get("sequences")).results if r.stage == "pack"][:1] if own else []
    found: dict[str, Any] = {}
    for result in (*packed, *own):
        kept = configs.find(env, result.config_hash) if result.config_hash else None
        if kept is None:
            return None
        found |= kept
    if {"train", "evaluate"} <= found.keys() and "forecast" in found:
        found["forecast"] = {k: v for k, v in found["forecast"].items() if k not in _TWICE}
        target = configs.flat(found["train"])  # a proxy is a training too: only what it has otherwise than the target says something
        found["forecast"]["proxies"] = [{k: v for k, v in configs.flat(p).items() if target.get(k) != v} for p in found["forecast"]["proxies"]]
    return found


def _effects(env: Environment, a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
    try:
        found = compare.of_models(responses.of_run(env, a), responses.of_run(env, b))
    except MoelineError as problem:
        return [], str(problem)
    return _ordered(found), None


def _ordered(compared: Mapping[str, Any]) -> list[dict[str, Any]]:
    return sorted(compared["differences"]["all"], key=lambda e: (LEVELS.index(e["level"]), e["name"] != "average"))


def _costs(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for stage in (s for s in PHASES if s in a["cost_by_stage"] or s in b["cost_by_stage"]):
        ours, theirs = a["cost_by_stage"].get(stage), b["cost_by_stage"].get(stage)
        found.append({"stage": stage, "a": ours, "b": theirs, "difference": theirs - ours if ours is not None and theirs is not None else None})
    return found


def render(found: Mapping[str, Any]) -> str:
    """What differs between the runs, and the costs, as text for a terminal."""
    from rich.table import Table
    from rich.text import Text

    from jobs.report_figures import usd

    console = text_console()
    settings = Table(title=Text(f"What differs: A = {found['a']['recipe']}, B = {found['b']['recipe']}"), title_justify="left")
    for heading in ("setting", "A", "B"):
        settings.add_column(heading, overflow="fold")
    for s in found["settings"] or []:
        settings.add_row(Text(s["setting"]), Text(str(s["a"])), Text(str(s["b"])))
    if found["only_a"] or found["only_b"]:
        settings.add_row(Text("data days"), *(Text(", ".join(found[side]) or "none more") for side in ("only_a", "only_b")))
    if settings.rows:
        console.print(settings)
    costs = Table(title="Cost of the whole runs, USD", title_justify="left")
    for heading in ("stage", "A", "B", "B - A"):
        costs.add_column(heading, justify="left" if heading == "stage" else "right")
    whole = {"stage": "all", "a": found["a"]["cost_usd"], "b": found["b"]["cost_usd"], "difference": found["cost_difference_usd"]}
    for c in (*found["costs"], whole):
        costs.add_row(Text(c["stage"]), usd(c["a"]), usd(c["b"]), "missing" if c["difference"] is None else f"{c['difference']:+.4f}")
    console.print(costs)
    lines = ["One of the runs was recorded before settings were kept; run it again (nothing is recomputed) and they are."] if found["settings"] is None else []
    lines += ["Both asked for the same settings."] if found["settings"] == [] else []
    lines += [f"A point more costs {usd(found['usd_per_point'])}."] if found["usd_per_point"] is not None else []
    return console.export_text() + "".join(f"{line}\n" for line in lines)
