"""Which benchmark items have a wrong key? Ranked from the answers of several strong models, without any human label. Nothing is relabelled.

The model: item i has a difficulty t ~ N(0, s), model m an ability b; m answers right with probability 1/(1 + exp(t - b)), else one of the
other options, each as likely. The key is wrong with the error rate of the item's task (shrunk to 2 %, worth 100 items), and then any other
option is right. Abilities, s and error rates are fitted by EM (a Rasch model with an unknown key: Dawid & Skene 1979 for the key, Rasch
1960 for the difficulty). ``suspicion`` is the posterior probability of a wrong key. Models share their mistakes, so it is too sure: a
ranking for a person to read from the top, not a probability.

Tried on MMLU-Redux (28 subjects x 100 items, 14 models, 60 wrong keys); AUROC for wrong keys on the first, the other half of the subjects
(every second one, by name), all; average precision on all. The method was chosen on the first half; the differences are within noise.
    share that disagrees with the key             .9603  .9578  .9587   .377
    that, best alternative breaks ties            .9637  .9621  .9624   .484
    best alternative's share minus the key's      .9652  .9606  .9615   .483
    weighted by ability (this item left out)      .9630  .9580  .9596   .379
    Dawid-Skene one coin, abilities by the key    .9624  .9462  .9504   .280
    Dawid-Skene EM by subject                     .9622  .9602  .9611   .464
      evidence tempered by .5                     .9627  .9605  .9617   .469
      evidence tempered by .25                    .9620  .9643  .9646   .551
    difficulty + key, one error rate              .9638  .9559  .9575   .476
      difficulty by subject                       .9618  .9560  .9579   .430
      error rate and difficulty by subject        .9626  .9602  .9617   .558
      error rate by subject (used)                .9652  .9623  .9636   .575

Change here: how items are ranked, reasons. Not here: files, the review sheet (jobs/audit.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
GRID = np.linspace(-6.0, 6.0, 25)  # difficulties, in units of ability
PRIOR_ERROR_RATE, PRIOR_WEIGHT = 0.02, 100
ROUNDS = 30
MIN_MODELS = 3


@dataclass(frozen=True)
class Question:
    """One item: ``answers`` maps a model to what it answered ("" or absent: nothing). ``n_options`` 0: as many as its task shows."""

    task: str
    item_id: str
    key: str
    answers: Mapping[str, str]
    n_options: int = 0


@dataclass(frozen=True)
class Suspect:
    """``suspicion`` 0..1 that the key is wrong; ``alternative`` the likeliest other answer; ``agreement`` the share of models that give the key."""

    task: str
    item_id: str
    key: str
    alternative: str
    suspicion: float
    agreement: float
    n_models: int
    reasons: tuple[str, ...]


def _log_sum(values: Floats, axis: int) -> Floats:
    top = values.max(axis=axis, keepdims=True)
    return np.asarray((top + np.log(np.exp(values - top).sum(axis=axis, keepdims=True))).squeeze(axis))


def _coded(questions: Sequence[Question], models: Sequence[str]) -> tuple[Floats, Floats, list[list[str]]]:
    """(given (N, M, K) one-hot answers with the key first, number of options (N), the options' names)."""
    names = [[q.key, *sorted({a for a in q.answers.values() if a and a != q.key})] for q in questions]
    seen: dict[str, set[str]] = {}
    for q, own in zip(questions, names, strict=True):
        seen.setdefault(q.task, set()).update(own)
    widest = {task: max(len(own) for q, own in zip(questions, names, strict=True) if q.task == task) for task in seen}
    letters = {task: len(found) if max(map(len, found)) == 1 else widest[task] for task, found in seen.items()}
    options = np.array([max(q.n_options or letters[q.task], len(own), 2) for q, own in zip(questions, names, strict=True)], dtype=float)
    given = np.zeros((len(questions), len(models), max(map(len, names))))
    place = {model: m for m, model in enumerate(models)}
    for i, (q, own) in enumerate(zip(questions, names, strict=True)):
        for model, answer in q.answers.items():
            if answer:
                given[i, place[model], own.index(answer)] = 1.0
    return given, options, names


def _posterior(given: Floats, options: Floats, real: NDArray[np.bool_], ability: Floats, spread: float, rate: Floats) -> Floats:
    """(N, K + 1, T) of which option is right (the last: one nobody gave) at which difficulty; sums to 1 per item."""
    right = np.clip(1.0 / (1.0 + np.exp(GRID[:, None] - ability)), 1e-4, 1 - 1e-4)  # (T, M)
    answered = given.sum(axis=2)
    hits = given.sum(axis=1)
    gain = np.einsum("nmk,tm->nkt", given, np.log(right) - np.log1p(-right))
    missed = np.maximum(answered.sum(axis=1)[:, None] - hits, 0.0) * np.log(options - 1)[:, None]
    wrong = answered @ np.log1p(-right).T
    seen = gain + wrong[:, None, :] - missed[:, :, None]
    nobody = (wrong - (answered.sum(axis=1) * np.log(options - 1))[:, None])[:, None, :]
    unseen = options - real.sum(axis=1)
    with np.errstate(divide="ignore"):
        prior = np.concatenate([np.where(real, np.log(rate / (options - 1))[:, None], -np.inf), np.log(unseen * rate / (options - 1))[:, None]], axis=1)
    prior[:, 0] = np.log1p(-rate)
    difficulty = -(GRID**2) / 2 / spread**2
    joint = np.concatenate([seen, nobody], axis=1) + prior[:, :, None] + difficulty
    return np.asarray(np.exp(joint - _log_sum(joint.reshape(len(joint), -1), 1)[:, None, None]))


def suspicion(questions: Sequence[Question]) -> tuple[Floats, Floats, dict[str, float], dict[str, float]]:
    """(probability of each item's options (N, K+1), key first; suspicion (N); ability by model; error rate by task). See the module's text.

    Raises ValueError when there are fewer than MIN_MODELS models.
    """
    models = sorted({model for q in questions for model in q.answers})
    if len(models) < MIN_MODELS:
        raise ValueError(f"The answers of {len(models)} models ({', '.join(models) or 'none'}) say little about a key; give those of at least {MIN_MODELS}.")
    given, options, names = _coded(questions, models)
    real = np.arange(given.shape[2]) < np.array([len(own) for own in names])[:, None]
    _, task = np.unique([q.task for q in questions], return_inverse=True)
    ability, spread, rate = np.full(len(models), 2.0), 2.0, np.full(len(questions), PRIOR_ERROR_RATE)
    answered = given.sum(axis=2)
    for _ in range(ROUNDS):
        posterior = _posterior(given, options, real, ability, spread, rate)
        wrong, hardness = 1.0 - posterior[:, 0].sum(axis=1), posterior.sum(axis=1)
        rate = ((np.bincount(task, wrong) + PRIOR_ERROR_RATE * PRIOR_WEIGHT) / (np.bincount(task) + PRIOR_WEIGHT))[task]
        spread = max(0.3, float(np.sqrt((hardness @ GRID**2).sum() / len(questions))))
        hits, tries = np.einsum("nkt,nmk->mt", posterior[:, :-1], given), np.einsum("nt,nm->mt", hardness, answered)
        p = 1.0 / (1.0 + np.exp(GRID - ability[:, None]))
        step = ((hits - tries * p).sum(axis=1) - 0.01 * ability) / ((tries * p * (1 - p)).sum(axis=1) + 0.01)
        ability = ability + np.clip(step, -1.0, 1.0)
    posterior = _posterior(given, options, real, ability, spread, rate)
    by_option = posterior.sum(axis=2)
    rates = {q.task: float(r) for q, r in zip(questions, rate, strict=True)}
    return by_option, by_option[:, 1:].sum(axis=1), dict(zip(models, map(float, ability), strict=True)), rates


def rank(questions: Sequence[Question]) -> list[Suspect]:
    """Every item, the likeliest wrong key first, with reasons in words."""
    by_option, wrong, ability, rates = suspicion(questions)
    strongest = sorted(ability, key=lambda m: -ability[m])[: max(1, len(ability) // 3)]
    found = []
    for q, probabilities, p in zip(questions, by_option, wrong, strict=True):
        names = [q.key, *sorted({a for a in q.answers.values() if a and a != q.key})]
        alternative = names[1 + int(np.argmax(probabilities[1 : len(names)]))] if len(names) > 1 else ""
        given = [a for a in q.answers.values() if a]
        agreement = given.count(q.key) / len(given) if given else 0.0
        found.append(Suspect(q.task, q.item_id, q.key, alternative, float(p), agreement, len(given), _reasons(q, alternative, strongest, rates[q.task])))
    return sorted(found, key=lambda s: (-s.suspicion, s.agreement, s.task, s.item_id))


def _reasons(q: Question, alternative: str, strongest: Sequence[str], rate: float) -> tuple[str, ...]:
    given = [a for a in q.answers.values() if a]
    counts = Counter(given)
    if not given:
        return ("no model gave an answer that could be read",)
    if counts[q.key] == len(given):
        return (f"all {len(given)} models give the key",)
    reasons = [f"{counts[alternative]} of {len(given)} models answer {alternative[:60]!r}, {counts[q.key]} the key {q.key[:60]!r}"]
    top = [q.answers.get(m, "") for m in strongest]
    if top.count(alternative) > len(top) / 2:
        reasons.append(f"so do {top.count(alternative)} of the {len(top)} strongest")
    others = [a for a in counts if a != q.key]
    if len(others) > 2 and counts[alternative] < 0.6 * (len(given) - counts[q.key]):
        reasons.append(f"the others scatter over {len(others)} answers: rather a hard or unclear question than another right answer")
    elif counts[q.key] and abs(counts[alternative] - counts[q.key]) <= 0.2 * len(given):
        reasons.append("the models are split between the two: both may be right, or the question is unclear")
    if rate > 2 * PRIOR_ERROR_RATE:
        reasons.append(f"about {rate:.0%} of the keys of {q.task[:60]} look wrong")
    return tuple(reasons)
