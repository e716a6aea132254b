"""moeline compare MODEL_A MODEL_B: what of the difference between two models is more than noise, on the items both answered.

Change here: what the comparison shows. Not here: the statistics (models/gauntlet/paired.py), how a model is found (jobs/services/responses.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import responses
from jobs.terminal import text_console

PARTS = {"clean": 0, "contaminated": 1}


def compare(env: Environment, name_a: str, name_b: str, *, by_text: bool = False, seed: int = 0) -> dict[str, Any]:
    """What ``moeline compare --json`` prints: effects (all items, clean, contaminated), items left out, each model's scores and calibration.

    Raises MoelineError when a model is not found or the two have no item in common.
    """
    return of_models(responses.find(env, name_a), responses.find(env, name_b), by_text=by_text, seed=seed)


def of_models(model_a: responses.Model, model_b: responses.Model, *, by_text: bool = False, seed: int = 0) -> dict[str, Any]:
    """The same of responses that were found already."""
    from models.gauntlet import paired

    try:
        pairs, left_out = paired.pair(*(paired.Answers(**responses.answers(m.rows, by_text=by_text)) for m in (model_a, model_b)))
        if not len(pairs.a):
            raise MoelineError(_nothing_in_common(model_a, model_b, left_out, by_text))
        parts = {"all": paired.compare(pairs, seed=seed)}
        for part, value in PARTS.items():
            rows = pairs.contaminated == value
            if rows.any() and (pairs.contaminated == 1).any():  # without a contaminated item, clean is all
                parts[part] = paired.compare(pairs.where(rows), seed=seed)
    except ValueError as problem:
        raise MoelineError(f"{model_a.name} and {model_b.name} cannot be compared: {problem}") from None
    return {
        "a": _single(model_a), "b": _single(model_b), "n_items": len(pairs.a), "left_out": [dataclasses.asdict(one) for one in left_out],
        "n_contaminated": int((pairs.contaminated == 1).sum()), "n_not_looked_at": int((pairs.contaminated == -1).sum()),
        "matched_by": "text" if by_text else "prompt tokens",
        "differences": {part: [dataclasses.asdict(effect) for effect in effects] for part, effects in parts.items()},
    }  # fmt: skip


def _nothing_in_common(a: responses.Model, b: responses.Model, left_out: Sequence[Any], by_text: bool) -> str:
    other = sum(one.other_prompt for one in left_out)
    if other and not by_text:
        why = f"{other} items were asked with other prompt tokens (another tokenizer, other shots). --by-text pairs prompts that read the same"
    else:
        why = "they answered different items. Evaluate both on one suite"
    return f"{a.about} ({a.rows.num_rows} answers) and {b.about} ({b.rows.num_rows} answers) have no item in common: {why}."


def _single(model: responses.Model) -> dict[str, Any]:
    from models.gauntlet import calibration

    return {
        "name": model.name,
        "about": model.about,
        "evaluation": model.evaluation,
        "tasks": [dataclasses.asdict(t) for t in calibration.tasks(model.rows.to_pylist())],
    }


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _effects_table(title: str, effects: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for heading in ("", "items", "A %", "B %", "B - A", "95 % interval", "p", "p adjusted", "visible"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for e in sorted(effects, key=lambda e: ("average", "category", "task").index(e["level"])):
        table.add_row(
            Text(f"{e['name']}" + (f" ({e['n_tasks']} tasks)" if e["level"] != "task" else "")), str(e["n"]), f"{100 * e['accuracy_a']:.2f}",
            f"{100 * e['accuracy_b']:.2f}", _points(e["difference"]), f"{_points(e['low'])} to {_points(e['high'])}", _p(e["p"]),
            _p(e["p_adjusted"]) + (" *" if e["p_adjusted"] < 0.05 else ""), f"{100 * e['detectable']:.2f}",
        )  # fmt: skip
    return table


def _tasks_table(side: str, model: Mapping[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{side} = {model['about']}"), title_justify="left")
    for heading in ("task", "items", "right %", "best constant %", "", "calibration error"):
        table.add_column(heading, justify="left" if heading in ("task", "") else "right")
    for t in model["tasks"]:
        error = t["without_ece"] if t["ece"] is None else f"{t['ece']:.3f}"
        flag = "" if t["above_constant"] else "NOT above it"
        table.add_row(Text(t["benchmark"]), str(t["n"]), f"{100 * t['accuracy']:.2f} ± {100 * t['stderr']:.2f}", f"{100 * t['best_constant']:.2f}", flag, error)
    return table


def render(found: Mapping[str, Any]) -> str:
    """The comparison as text for a terminal."""
    console = text_console()
    for side in ("a", "b"):
        console.print(_tasks_table(side.upper(), found[side]))
    titles = {"all": "B minus A, in points, on the items both answered", "clean": "Only clean items", "contaminated": "Only items training text overlaps"}
    for part, effects in found["differences"].items():
        console.print(_effects_table(titles[part], effects))
    lines = [
        "* significant at 5 % after adjusting (tasks: Holm; categories and averages: maxT). visible: the difference found with 80 % power, in points.",
        f"{found['n_items']} items compared (same {found['matched_by']}), {found['n_contaminated']} of them contaminated"
        + (f", {found['n_not_looked_at']} not looked at." if found["n_not_looked_at"] else "."),
    ]
    lines += [
        f"Not compared in {one['benchmark']}: {one['only_a']} only A answered, {one['only_b']} only B, {one['other_prompt']} asked with other prompts."
        for one in found["left_out"]
    ]
    return console.export_text() + "\n".join(lines) + "\n"
