"""One model's stored responses by task: accuracy with its error, the best constant answer, and whether its confidence can be believed. Pure.

Calibration error as in Composer (InContextLearning*ExpectedCalibrationError, 10 buckets): answers are put into buckets by confidence, and
the error is the mean, weighted by answers, of |share right - middle of the bucket|. Note the middle, not the mean confidence: a model that
is right and certain has an error of .05.

multiple choice, schema  confidence = probability per token (the geometric mean) of the chosen option over the sum over options. It is the
                         number that chooses, so the surest option is the one answered. Composer takes the arithmetic mean, which can be surer
                         of another option than of the answer that is scored; the two are the same where options are one token (letters)
language modeling        confidence = the least likely token of the model's own greedy answer (Composer's exactly). The gold answer's
                         log-probability cannot say it where the answer is wrong, so it is stored as ``confidence``; None for older responses
generation, code         not defined (None): of a generated text only whether it is right is known

Change here: what is said about a single model. Not here: scores and their baselines (averages.py), two models (paired.py).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.gauntlet.answers import normalise_answer

BUCKETS = 10
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class TaskSummary:
    """``above_constant``: accuracy minus two standard errors is more than the best constant answer. ``ece`` None: ``without_ece`` says why."""

    benchmark: str
    category: str
    n: int
    accuracy: float
    stderr: float
    best_constant: float
    above_constant: bool
    ece: float | None
    without_ece: str = ""


def expected_calibration_error(confidence: Sequence[float], correct: Sequence[bool], buckets: int = BUCKETS) -> float:
    """Composer's ECE of confidences in 0..1. Raises ValueError for others, or none."""
    sure, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    if not len(sure) or len(sure) != len(right) or not np.all((sure >= 0) & (sure <= 1 + 1e-9)):
        raise ValueError(f"{len(sure)} confidences for {len(right)} answers; as many are needed, at least one, each within 0 and 1.")
    place = np.minimum((sure * buckets).astype(int), buckets - 1)
    total, hits = np.bincount(place, minlength=buckets), np.bincount(place, right, minlength=buckets)
    middle = (np.arange(buckets) + 0.5) / buckets
    used = total > 0
    return float((total[used] / len(sure)) @ np.abs(hits[used] / total[used] - middle[used]))


def confidence(response: Mapping[str, Any]) -> float | None:
    """How sure the model was of its answer, 0..1; None where the response does not say."""
    means = response.get("mean_logprobs") or ()
    if len(means) > 1:
        chosen = means[response["prediction"]]
        return 1.0 / sum(math.exp(value - chosen) for value in means)
    stored = response.get("confidence")
    return None if stored is None else float(stored)


def best_constant(responses: Sequence[Mapping[str, Any]]) -> float:
    """Share of the commonest right answer's text (for generation: of the commonest alias, normalised). 0 where the texts are not stored."""
    texts: Counter[str] = Counter()
    for response in responses:
        choices, gold = response.get("choices") or (), response["gold"]
        if len(response.get("sum_logprobs") or ()) == 0:  # generation: any of the aliases is right
            texts.update({normalise_answer(choice) for choice in choices})
        elif choices:
            texts[choices[gold if len(choices) > 1 else 0].strip()] += 1
    return min(1.0, max(texts.values(), default=0) / len(responses))


def tasks(responses: Sequence[Mapping[str, Any]]) -> list[TaskSummary]:
    """Every task of the responses, in order of first appearance. A task's accuracy is the mean over its subsets, errors in quadrature."""
    by_task: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for response in responses:
        by_task[response["benchmark"]].append(response)
    found = []
    for name, members in by_task.items():
        accuracy, stderr = accuracy_with_error([(_subset(r), r["correct"]) for r in members])
        constant = best_constant(members)
        sure = [confidence(r) for r in members]
        known = [c for c in sure if c is not None]
        ece = expected_calibration_error(known, [r["correct"] for r in members]) if len(known) == len(members) else None
        above = accuracy - STANDARD_ERRORS * stderr > constant
        generated = all(len(r.get("mean_logprobs") or ()) == 0 for r in members)
        reason = "" if ece is not None else "not defined for text" if generated else "not stored then"
        found.append(TaskSummary(name, members[0]["category"], len(members), accuracy, stderr, constant, above, ece, reason))
    return found


def _subset(response: Mapping[str, Any]) -> str:
    import json

    if response.get("subset") is not None:
        return str(response["subset"])
    return str(json.loads(response["item"]).get("subset") or "") if response.get("item") else ""


def accuracy_with_error(answers: Sequence[tuple[str, bool]]) -> tuple[float, float]:
    """(accuracy, standard error) of (subset, right): the unweighted mean over subsets."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for subset, right in answers:
        groups[subset].append(right)
    rates = [(sum(right) / len(right), len(right)) for right in groups.values()]
    return sum(rate for rate, _ in rates) / len(rates), math.sqrt(sum(rate * (1 - rate) / n for rate, n in rates)) / len(rates)
