"""The read side of the page "Scores over checkpoints": scores of every evaluated checkpoint, and its answers one page at a time.

Change here: what is read for that page and its CSV files. Not here: routes (infra/dashboards), drawing (static/trend.js).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.contract import MoelineError, StageResult, TableVersion
from jobs.environment import Environment
from jobs.services import delta, results

VERDICTS = ("proper", "lucky", "constant_answer", "contaminated", "format_failure", "near_miss", "wrong")
POINT = ("benchmark", "category", "n", "accuracy", "stderr", "chance", "best_constant", "score", "accuracy_clean", "n_contaminated")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # also their full-width forms
_ITEM = ("item_id", "kind", "choices", "sum_logprobs", "mean_logprobs", "output", "prediction", "gold", "correct", "truncated", "n_prompt_tokens", "item")


def points(env: Environment) -> list[dict[str, Any]]:
    """One row per evaluated checkpoint, task, category mean (benchmark ``*``) and average (``**``), oldest first."""
    scores: dict[str, list[dict[str, Any]]] = {}
    for row in delta.rows(env, "scores"):
        scores.setdefault(row["run_key"], []).append(row)
    trained = {version: r for r in results.of_stage(env, "train") for version in r.outputs.values()}
    found = []
    for result in results.of_stage(env, "evaluate"):
        training = trained.get(result.inputs.get("checkpoints", ""))
        about = {
            "run_key": result.run_key, "recipe": result.recipe, "finished_at": result.finished_at,
            "tokens": training.metrics.get("tokens") if training else None, "loss": training.metrics.get("held_out_loss") if training else None,
        }  # fmt: skip
        found += [{**about, "model": row["model"], **{k: row[k] for k in POINT}} for row in scores.get(result.run_key, [])]
    return found


def items(
    env: Environment, run_key: str, benchmark: str, *, verdict: str | None = None, offset: int = 0, limit: int = 25
) -> dict[str, Any]:  # fmt: skip
    """A page of one task's answers with their review, worst margin first. Raises MoelineError when ``run_key`` evaluated nothing."""
    import pyarrow.dataset as ds

    evaluated = results.find(env, "evaluate", run_key)
    if evaluated is None or "responses" not in evaluated.outputs:
        raise MoelineError(f"No evaluation with run key {run_key!r} is recorded. Reload the page.")
    reviewed = _reviews(env, evaluated, benchmark)
    answers = delta.dataset(env, TableVersion.parse(evaluated.outputs["responses"]))
    asked = (ds.field("run_key") == run_key) & (ds.field("benchmark") == benchmark)  # the partition column: other runs' files are not opened
    ids = answers.to_table(columns=["item_id"], filter=asked)["item_id"].to_pylist()
    chosen = [i for i in ids if verdict is None or reviewed.get(i, {}).get("verdict") == verdict]
    chosen.sort(key=lambda i: (_margin(reviewed.get(i)), i))
    shown = chosen[offset : offset + limit]
    rows = answers.to_table(columns=list(_ITEM), filter=asked & ds.field("item_id").isin(shown)).to_pylist() if shown else []
    by_id = {row["item_id"]: row for row in rows}
    return {"total": len(chosen), "offset": offset, "items": [_item(by_id[i], reviewed.get(i)) for i in shown]}


def _margin(review: Mapping[str, Any] | None) -> float:
    value = review and review["margin"]
    return float("inf") if value is None else float(value)


def _reviews(env: Environment, evaluated: StageResult, benchmark: str) -> dict[str, dict[str, Any]]:
    """The newest review of these answers, by item; {} before stage review has run."""
    import pyarrow.dataset as ds

    own = [r for r in results.of_stage(env, "review") if r.inputs.get("responses") == evaluated.outputs["responses"] and "verdicts" in r.outputs]
    if not own:
        return {}
    asked = (ds.field("run_key") == own[-1].run_key) & (ds.field("benchmark") == benchmark)
    table = delta.dataset(env, own[-1].table("verdicts")).to_table(filter=asked)
    return {row["item_id"]: row for row in table.to_pylist()}


def _item(row: Mapping[str, Any], review: Mapping[str, Any] | None) -> dict[str, Any]:
    about = json.loads(row["item"])
    evidence = ("verdict", "evidence", "margin", "lead", "second_choice", "pattern", "pattern_agreement", "format", "contaminated", "key_suspect")
    return {
        **{k: row[k] for k in _ITEM if k != "item"}, "prompt": str(about.get("prompt", "")), "subset": about.get("subset") or about.get("source"),
        **{k: review[k] if review else None for k in evidence},
    }  # fmt: skip


def as_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """RFC 4180 text. A cell of text that a spreadsheet would run as a formula begins with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (int, float)):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
