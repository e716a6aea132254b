"""What lm_eval found out, in the form of ``moeline evaluate``: entries of scores.json and rows of responses.parquet, marked as lm_eval's.

Change here: which columns they fill. Not here: the numbers, which are lm_eval's own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.gauntlet.scoring import Response

PREFIX = "lm_eval/"  # of labels and categories: whoever averages over categories keeps them apart from Foundry's
_RIGHT = ("acc", "exact_match", "acc_norm", "em")  # the metric that says whether an item is right: the first of these that a task has
_KINDS = {"multiple_choice": "loglikelihood"}  # how lm_eval asks an output type


@dataclass(frozen=True)
class Judged:
    """One item. ``metrics``: lm_eval's values of it by "name,filter". ``response.correct`` is None where no metric says right or wrong."""

    benchmark: str
    category: str
    shots: int
    response: Response
    metrics: dict[str, Any]


@dataclass
class Outcome:
    """``results``: one a task and one a group, for scores.json. ``items``: for responses.parquet."""

    results: list[dict[str, Any]] = field(default_factory=list)
    items: list[Judged] = field(default_factory=list)

    def add(self, found: Mapping[str, Any], lm: Any, *, suffix: str = "") -> None:
        """Add what lm_eval's simple_evaluate returned. ``suffix`` is put behind the names of its tasks."""
        for task, metrics in found["results"].items():
            self.results.append(_result(task, f"{PREFIX}{task}{suffix}", metrics, found, lm.max_length))
        for task, samples in found["samples"].items():
            config, shots = found["configs"][task], int(found["n-shot"].get(task) or 0)
            by_item: dict[int, list[Mapping[str, Any]]] = {}
            for sample in samples:  # one a filter and item
                by_item.setdefault(sample["doc_id"], []).append(sample)
            for item, judged in by_item.items():
                response = _response(str(item), config["output_type"], judged, lm)
                metrics = {f"{name},{s['filter']}": _plain(s[name]) for s in judged for name in s["metrics"]}
                self.items.append(Judged(f"{PREFIX}{task}{suffix}", f"{PREFIX}{config['output_type']}", shots, response, metrics))


def _result(task: str, label: str, found: Mapping[str, Any], of_all: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    better = of_all["higher_is_better"].get(task) or {}
    metrics = []
    for key, value in found.items():
        name, comma, filter_name = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, float | int):
            continue
        if not math.isfinite(value):
            raise ValueError(f"{label}: lm_eval's {key} is {value}. A mean over it would be no number; leave the task out, or look at the model.")
        error = found.get(f"{name}_stderr,{filter_name}")
        metrics.append(
            {
                "name": name, "filter": filter_name, "value": float(value), "higher_is_better": better.get(name),
                "stderr": float(error) if isinstance(error, float | int) and math.isfinite(error) else None,
            }
        )  # fmt: skip
    return {
        "benchmark": label, "task": task, "group": task in of_all["group_subtasks"], "shots": of_all["n-shot"].get(task), "max_length": max_length,
        "n": of_all["n-samples"].get(task, {}).get("effective"), "n_all": of_all["n-samples"].get(task, {}).get("original"),
        "version": str(of_all["versions"].get(task)), "metrics": metrics,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """A metric's value of one item as JSON."""
    value = value.item() if hasattr(value, "item") else value  # numpy's
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, float | int) else str(value)


def _response(item: str, output_type: str, judged: Sequence[Mapping[str, Any]], lm: Any) -> Response:
    sample, kind = judged[0], _KINDS.get(output_type, output_type)
    asked = list(zip(sample["arguments"], (answers[0] for answers in sample["resps"]), strict=True))
    if output_type == "multiple_choice" and any(context for (context, _), _ in asked):  # mutual information asks every choice without context too
        asked = [(arguments, answer) for arguments, answer in asked if arguments[0]]
    tokens = [lm.tokens(kind, arguments) for arguments, _ in asked]
    sums = () if kind == "generate_until" else tuple(float(answer[0] if isinstance(answer, tuple) else answer) for _, answer in asked)
    choices = _choices(output_type, [arguments for arguments, _ in asked], sample["target"])
    prediction, gold, output = _verdict(output_type, sample, choices, sums, asked)
    return Response(
        item_id=item, kind=f"{PREFIX}{output_type}", subset="", prompt=str(asked[0][0][0]), n_prompt_tokens=max(len(read) for read, _, _ in tokens),
        prompt_hash=hashlib.sha256(repr([(read, predicted) for read, predicted, _ in tokens]).encode()).hexdigest()[:16], choices=choices, sum_logprobs=sums,
        mean_logprobs=tuple(total / max(1, len(predicted)) for total, (_, predicted, _) in zip(sums, tokens, strict=bool(sums))), output=output,
        prediction=prediction, gold=gold, correct=_right(sample), truncated=any(cut for _, _, cut in tokens),
    )  # fmt: skip


def _choices(output_type: str, arguments: Sequence[Sequence[Any]], target: Any) -> tuple[str, ...]:
    if output_type == "generate_until":
        return tuple(str(t) for t in target) if isinstance(target, list) else (str(target),)
    if output_type == "loglikelihood_rolling":
        return ("",)
    continuations = tuple(continuation.strip() for _, continuation in arguments)
    return tuple(context for context, _ in arguments) if len(continuations) > 1 and len(set(continuations)) == 1 else continuations


def _verdict(
    output_type: str, sample: Mapping[str, Any], choices: Sequence[str], sums: Sequence[float], asked: Sequence[tuple[Any, Any]]
) -> tuple[int, int, str]:  # fmt: skip
    """(prediction, gold, output) as in the other rows: an option's place, or 0 right and -1 not."""
    if output_type == "multiple_choice":
        best, target = max(range(len(sums)), key=lambda i: (sums[i], -i)), sample["target"]
        gold = target[0] if isinstance(target, list) and target else target
        place = gold if isinstance(gold, int) else choices.index(str(gold).strip()) if str(gold).strip() in choices else -1
        if place < 0 and (right := _right(sample)) is not None and (right or len(choices) == 2):  # contexts are the options, their target is no place
            place = best if right else 1 - best
        return best, place, choices[best]
    if output_type == "loglikelihood":
        greedy = bool(asked[0][1][1])
        return (0 if greedy else -1), 0, choices[0] if greedy else ""
    right = _right(sample)
    return (0 if right else -1), -1, str(sample["filtered_resps"][0]) if output_type == "generate_until" else ""


def _right(sample: Mapping[str, Any]) -> bool | None:
    value = next((sample[name] for name in _RIGHT if name in sample["metrics"]), None)
    return bool(value) if isinstance(value, float | int) and value in (0, 1) else None
