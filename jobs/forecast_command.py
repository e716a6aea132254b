"""moeline forecast fit: what a larger run will reach, from a CSV of anyone's runs. moeline forecast show: a recorded forecast beside its outcome.
plan and calibration have files of their own (proxy_plan.py, calibration.py).

The file has one row per finished run: params, tokens, loss, for mixtures of experts also active_params, and any number of task columns with
accuracies. The laws and their choice are in models/scaling_selection.py.
Change here: the file format, what is refused, how the result reads. Not here: any number (models/). Standard library only at import.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError

ABOUT = "What a larger run will reach: fitted to anyone's finished runs (fit), from which proxies (plan), or as it was forecast here (show, calibration)."
_REQUIRED = ("params", "tokens", "loss")
_LABELS = ("run", "name", "model", "seed", "date")
_OWN_LOSS = ".loss"
_SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_FIT = """Fits scaling laws to your finished runs and says what a larger one will reach.

columns of the CSV, one row per finished run:
  params          all parameters              190e6
  active_params   parameters a token passes through; leave the column out for dense models
  tokens          training tokens             4e9
  loss            final loss, nats per token or any unit you keep to
  mmlu            accuracy between 0 and 1; every further column of numbers is a task
  mmlu.loss       loss on that task's right answers (e.g. bits per byte): a better guide to it than the general loss
  run             a label; not used
At least 5 runs of 2 sizes. More sizes help most: the largest are held out to choose between laws, and the error there is carried into the
interval. Laws are never chosen by looking at the target.
"""
_FIT_EXAMPLE = """example:
  moeline forecast fit --runs ladder.csv --target 13B,5T --chance mmlu=0.25 --chance piqa=0.5
  moeline forecast fit --runs moe.csv --target 132B,12T --active 36B --json

reading the table: "naive" is the best run so far, unchanged. "miss" is the mean error on the held-out runs, "naive miss" that of the naive
forecast there; where the first is not smaller, the forecast has not earned your trust and a note says so.
"""
_PLAN = """Chooses proxies (widths and tokens) of a recipe so that the forecast of its training is as sure as a budget can make it.

Every set of proxies is judged by the interval that laws fitted to it would have at the target: small and short proxies steady the fit, and the largest
one is as large as the rest of the money allows. Proxies of this recipe that are finished cost nothing and are used first. The same recipe and records
give the same plan. Nothing is trained.
"""
_PLAN_EXAMPLE = """example:
  moeline forecast plan --recipe h200 --share 0.05
  moeline forecast plan --recipe small_cpu --budget 0.20 --as-recipe small_cpu-planned
"""


def add_to(found: argparse.ArgumentParser) -> None:
    """Add ``fit``, ``plan``, ``show`` and ``calibration`` to the parser of ``moeline forecast``."""
    actions = found.add_subparsers(dest="forecast_action", required=True, metavar="ACTION")
    kept = argparse.SUPPRESS  # `moeline forecast --json fit` and `moeline forecast fit --json` are the same
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", default=kept, help="print the result as JSON on stdout")
    common.add_argument("--debug", action="store_true", default=kept, help="show tracebacks")
    fit = actions.add_parser(
        "fit", parents=[common], help="fit laws to a CSV of runs", description=_FIT, epilog=_FIT_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    fit.add_argument("--runs", required=True, metavar="CSV", help="one row per finished run")
    fit.add_argument("--target", required=True, metavar="N,D", help="parameters and tokens of the run to forecast, e.g. 13B,5T or 13e9,5e12")
    fit.add_argument("--active", metavar="N", help="active parameters of the target (with the column active_params)")
    fit.add_argument("--chance", action="append", default=[], metavar="TASK=P", help="accuracy of guessing on a task, e.g. mmlu=0.25 (default: 0)")
    fit.add_argument("--bootstraps", type=int, default=1000, metavar="B", help="refits to reweighted runs behind the interval (default: 1000)")
    show = actions.add_parser("show", parents=[common], help="a recorded forecast beside its outcome", description="A recorded forecast beside its outcome.")
    show.add_argument("run", metavar="RUN", help="a run id of `moeline report`, or the start of one")
    about = "Were the forecasts right as often as they said? Coverage, bias and sharpness over every registered forecast that came out."
    judged = actions.add_parser("calibration", parents=[common], help="coverage, bias and sharpness of all past forecasts", description=about)
    judged.add_argument("--svg", metavar="FILE", help="also write the picture of it")
    for reads_tables in (_add_plan(actions, common), show, judged):
        reads_tables.add_argument("--env", default=kept, help="environment in infra/env, or a .toml file")
        reads_tables.add_argument("--home", default=kept, help="folder of tables, landing zone, logs and state")


def _add_plan(actions: Any, common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    plan: argparse.ArgumentParser = actions.add_parser(
        "plan", parents=[common], help="the proxies that best constrain a recipe's forecast", description=_PLAN, epilog=_PLAN_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    plan.add_argument("--recipe", required=True, metavar="R", help="whose training is to be forecast (moeline recipes)")
    money = plan.add_mutually_exclusive_group()
    money.add_argument("--share", type=float, metavar="S", help="of the training's FLOPs that proxies may take (default: 0.1)")
    money.add_argument("--budget", type=float, metavar="USD", help="dollars for proxies, their launch included, by what proxies took here")
    plan.add_argument(
        "--as-recipe", metavar="NAME", help="keep the recipe with these proxies under this name; `moeline stage forecast --recipe NAME` trains them"
    )
    return plan


def act(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    """Run ``fit``, ``plan``, ``show`` or ``calibration``; prints a table where no JSON is asked for."""
    if arguments.forecast_action == "plan":
        from jobs import proxy_plan, recipes

        recipe = recipes.load(arguments.recipe, home=env.home)
        found, text = proxy_plan.plan(env, recipe, share=arguments.share, budget_usd=arguments.budget), proxy_plan.render
        if arguments.as_recipe:
            proxy_plan.as_own_recipe(env, recipe, found, arguments.as_recipe)
    elif arguments.forecast_action == "show":
        found, text = show(env, arguments.run), render_shown
    elif arguments.forecast_action == "calibration":
        from jobs import calibration, calibration_plot

        found, text = calibration.calibration(env), calibration.render
        if arguments.svg:
            _write(arguments.svg, calibration_plot.svg(found))
    else:
        found, text = fit(arguments.runs, arguments.target, arguments.active, arguments.chance, arguments.bootstraps), render
    if not arguments.json:
        print(text(found), end="")
    return found


def _write(file: str, text: str) -> None:
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as problem:
        raise MoelineError(f"Cannot write {file}: {problem}.") from None


def fit(runs: str, target: str, active: str | None = None, chances: Sequence[str] = (), bootstraps: int = 1000) -> dict[str, Any]:
    """What ``moeline forecast fit --json`` prints. Raises MoelineError naming the file, line and column of what cannot be used."""
    from models import scaling_selection

    rows, columns = _read(Path(runs))
    points = _points(rows, runs)
    size, tokens = _target(target)
    wanted = _active_target(size, tokens, active, mixtures="active_params" in columns, runs=runs)
    if len({p.params for p in points}) == 1:
        raise MoelineError(f"All {len(points)} runs in {runs} have {points[0].params:g} parameters: no law in size can be fitted. Add runs of a second size.")
    tasks = _tasks(rows, columns, chances, runs)
    if not 20 <= bootstraps <= 100_000:
        raise MoelineError(f"--bootstraps {bootstraps}: give 20 to 100000.")
    try:
        loss = scaling_selection.forecast_loss_of(points, wanted, bootstraps=bootstraps)
        by_task = scaling_selection.forecast_tasks(points, tasks, wanted, bootstraps=bootstraps) if tasks else {}
    except ValueError as problem:
        raise MoelineError(f"{runs}: {problem}") from None
    found = {"loss": dataclasses.asdict(loss), "tasks": {name: dataclasses.asdict(f) for name, f in by_task.items()}}
    return {
        "target": dataclasses.asdict(wanted), "runs": len(points), "compute_ratio": wanted.params * wanted.tokens / max(p.params * p.tokens for p in points),
        **found, "notes": _notes(points, wanted, found, tasks, chances),
    }  # fmt: skip


def _number(text: str) -> float:
    """A number such as 13e9, 13B or 5T; NaN when it is none."""
    text = text.strip().replace("_", "")
    scale = _SUFFIXES.get(text[-1:].upper(), 1.0)
    try:
        return float(text if scale == 1.0 else text[:-1]) * scale
    except ValueError:
        return math.nan


def _target(text: str) -> tuple[float, float]:
    parts = [_number(part) for part in text.split(",")]
    if len(parts) != 2 or not all(0 < part < math.inf for part in parts):
        raise MoelineError(f"--target {text!r} is not N,D: parameters and tokens, both above 0, such as 13B,5T or 13e9,5e12.")
    return parts[0], parts[1]


def _active_target(size: float, tokens: float, active: str | None, *, mixtures: bool, runs: str) -> Any:
    from models.scaling_selection import Target

    if active is None:
        if mixtures:
            raise MoelineError(f"{runs} has the column active_params, so the target needs --active N beside --target. For a dense target repeat its N.")
        return Target(size, tokens)
    if not mixtures:
        raise MoelineError(f"--active {active}: {runs} has no column active_params to learn from. Add the column, or leave --active out.")
    used = _number(active)
    if not 0 < used <= size:
        raise MoelineError(f"--active {active} is not a number above 0 and at most the target's {size:g} parameters.")
    return Target(used, tokens, size)


def _read(file: Path) -> tuple[list[dict[str, str]], list[str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            columns = [name.strip() for name in reader.fieldnames or []]
            rows = [{(k or "").strip(): v for k, v in row.items()} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise MoelineError(f"Cannot read {file}: {problem}. Give a CSV file with a header line; see moeline forecast fit --help.") from None
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise MoelineError(f"{file} lacks the column {', '.join(missing)}; it has {', '.join(columns) or 'none'}. See moeline forecast fit --help.")
    if len(set(columns)) < len(columns):
        raise MoelineError(f"{file} names a column twice: {', '.join(columns)}.")
    if any("" in row or None in row.values() for row in rows):
        raise MoelineError(f"{file}: a line has more or fewer cells than the header's {len(columns)}.")
    return rows, columns


def _values(rows: Sequence[Mapping[str, str]], name: str, runs: str, *, highest: float = math.inf) -> list[float]:
    """One column as numbers above 0 (accuracies: 0 to 1)."""
    found = []
    for line, row in enumerate(rows, 2):
        value = _number(row[name])
        if not (math.isfinite(value) and 0 <= value <= highest and (value > 0 or highest == 1.0)):
            wanted = "an accuracy between 0 and 1 (divide percentages by 100)" if highest == 1.0 else "a number above 0"
            raise MoelineError(f"{runs} line {line}, column {name}: {row[name]!r} is not {wanted}. Leave out runs that did not finish.")
        found.append(value)
    return found


def _points(rows: Sequence[Mapping[str, str]], runs: str) -> list[Any]:
    from models.scaling import RunPoint
    from models.scaling_selection import LEAST_RUNS

    if len(rows) < LEAST_RUNS:
        raise MoelineError(f"{runs} has {len(rows)} runs; a forecast needs at least {LEAST_RUNS}, of at least 2 sizes. Train a few more small ones.")
    params, tokens, loss = (_values(rows, name, runs) for name in _REQUIRED)
    if "active_params" not in rows[0]:
        return [RunPoint(*each) for each in zip(params, tokens, loss, strict=True)]
    active = _values(rows, "active_params", runs)
    for line, (used, all_of_them) in enumerate(zip(active, params, strict=True), 2):
        if used > all_of_them:
            raise MoelineError(f"{runs} line {line}: active_params {used:g} is more than params {all_of_them:g}. Are the columns swapped?")
    return [RunPoint(a, d, value, n) for a, d, value, n in zip(active, tokens, loss, params, strict=True)]


def _tasks(rows: Sequence[Mapping[str, str]], columns: Sequence[str], chances: Sequence[str], runs: str) -> list[Any]:
    import numpy as np

    from models.scaling_tasks import Task

    others = [name for name in columns if name not in (*_REQUIRED, "active_params", *_LABELS)]
    names = [name for name in others if not name.endswith(_OWN_LOSS)]
    orphans = [name for name in others if name.endswith(_OWN_LOSS) and name.removesuffix(_OWN_LOSS) not in names]
    if orphans:
        raise MoelineError(f"{runs}: column {orphans[0]} is the loss of a task, but there is no column {orphans[0].removesuffix(_OWN_LOSS)} with its accuracy.")
    guessed = _chances(chances, names)
    return [
        Task(
            name, np.array(_values(rows, name, runs, highest=1.0)), guessed.get(name, 0.0),
            np.array(_values(rows, name + _OWN_LOSS, runs)) if name + _OWN_LOSS in others else None,
        )
        for name in names
    ]  # fmt: skip


def _chances(given: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    found = {}
    for text in given:
        name, _, value = text.rpartition("=")
        if name not in names:
            raise MoelineError(f"--chance {text}: no task column {name!r}. Tasks: {', '.join(names) or 'none'}.")
        if not 0 <= _number(value) < 1:
            raise MoelineError(f"--chance {text}: {value!r} is not a number from 0 to below 1, such as {name}=0.25.")
        found[name] = _number(value)
    return found


def _notes(points: Sequence[Any], target: Any, found: Mapping[str, Any], tasks: Sequence[Any], chances: Sequence[str]) -> list[str]:
    largest = max(p.params * p.tokens for p in points)
    ratio = target.params * target.tokens / largest
    notes = []
    if ratio <= 1:
        notes.append(f"The target's compute lies inside the range of the runs ({ratio:.2g} of the largest): this is interpolation, not a forecast.")
    elif ratio > 300:
        notes.append(f"The target has {ratio:,.0f} times the largest run's compute: further than published forecasts were ever checked (300 times).")
    losers = [name for name, f in (("loss", found["loss"]), *found["tasks"].items()) if not f["details"]["beats_naive"]]
    if losers:
        notes.append(f"Not better than the naive forecast on the held-out runs: {', '.join(losers)}. Do not spend money on these numbers.")
    without = [t.name for t in tasks if t.name not in {c.rpartition("=")[0] for c in chances}]
    if without:
        notes.append(f"Chance is taken as 0 for {', '.join(without)}; give --chance TASK=P for tasks that can be guessed.")
    return notes


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their longest cell; whatever a file's header holds is made printable."""
    plain = [["".join(c if c.isprintable() else " " for c in cell) for cell in row] for row in (headings, *rows)]
    widths = [max(len(row[i]) for row in plain) for i in range(len(headings))]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]).rstrip() for row in plain]


def render(found: Mapping[str, Any]) -> str:
    """The forecast as text for a terminal."""
    target = found["target"]
    active = "" if target["total_params"] is None else f" active of {target['total_params']:.4g}"
    ratio = f"{found['compute_ratio']:.3g} times the largest of {found['runs']} runs"
    lines = [f"Target: {target['params']:.4g}{active} parameters, {target['tokens']:.4g} tokens; {ratio}."]
    rows = []
    for name, f in (("loss", found["loss"]), *found["tasks"].items()):
        miss, naive_miss = (f["details"][key] for key in ("held_out_error", "naive_held_out_error"))
        rows.append([name, f"{f['predicted']:.4f}", f"{f['low']:.4f} to {f['high']:.4f}", f"{f['naive']:.4f}", f"{100 * miss:.2f}", f"{100 * naive_miss:.2f}"])
    lines += [
        "",
        *table(("", "forecast", "95 % interval", "naive", "miss", "naive miss"), rows),
        "(miss: loss in %, tasks in points, on the held-out runs)",
        "",
    ]
    for title, f in (("loss", found["loss"]), *list(found["tasks"].items())[:1]):
        chosen = f["details"]["chosen"]
        lines.append("Laws of the loss, by their miss on the held-out largest runs:" if title == "loss" else "Laws of the tasks, all tasks together:")
        ranked = sorted(f["details"]["held_out_errors"].items(), key=lambda item: item[1])
        lines += [f"  {100 * error:6.2f}  {law}{'  (averaged: within 1.5 times the best of its kind)' if law in chosen else ''}" for law, error in ranked]
    return "\n".join([*lines, "", *(f"Note: {note}" for note in found["notes"])]).rstrip() + "\n"


def show(env: Any, run: str) -> dict[str, Any]:
    """What ``moeline forecast show RUN --json`` prints: each metric as forecast, as it came out, and whether it lay inside the interval."""
    from jobs.services import report

    runs = [r for r in report.runs(env) if r["forecast"]]
    matches = [r for r in runs if r["run_id"] == run] or [r for r in runs if r["run_id"].startswith(run)]
    if len(matches) != 1:
        known = ", ".join(r["run_id"] for r in (matches or runs)[-10:]) or "none yet"
        raise MoelineError(f"{run!r} names {len(matches)} runs with a forecast. {'Matching' if matches else 'Known'}: {known}. See moeline report.")
    rows = [{**row, **_judged(row)} for row in matches[0]["forecast"]]
    return {"run_id": matches[0]["run_id"], "recipe": matches[0]["recipe"], "content_hash": matches[0]["forecast_id"], "metrics": rows}


def _judged(row: Mapping[str, Any]) -> dict[str, Any]:
    outcome = row["outcome"]
    if outcome is None:
        return {"error": None, "inside": None, "beats_naive": None}
    miss = abs(row["predicted"] - outcome)
    return {
        "error": row["predicted"] / outcome - 1 if outcome else None, "inside": row["low"] <= outcome <= row["high"],
        "beats_naive": miss < abs(row["naive"] - outcome),
    }  # fmt: skip


def render_shown(found: Mapping[str, Any]) -> str:
    """A recorded forecast as text for a terminal."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        inside = {None: "not yet known", True: "inside", False: "OUTSIDE"}[row["inside"]]
        outcome = "" if row["outcome"] is None else f"{row['outcome']:.4f}"
        error = "" if row["error"] is None else f"{100 * row['error']:+.1f} %"
        return [row["metric"], f"{row['predicted']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}", f"{row['naive']:.4f}", outcome, error, inside]

    lines = [f"Forecast of {found['run_id']} (recipe {found['recipe']}), registered before launch as {str(found['content_hash'])[:12]}", ""]
    lines += table(("", "forecast", "95 % interval", "naive", "outcome", "error", ""), [cells(row) for row in found["metrics"]])
    return "\n".join(lines) + "\n"
