"""What a model must show before it is promoted to champion. Pure functions; change a promotion threshold here.

A gate compares one observed number with one limit, and its sentence is stored and shown, whether it passed or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

STANDARD_ERRORS = 2.0  # how far beyond noise a difference must be to count
MIN_TASKS_ABOVE_BASELINE = 2


@dataclass(frozen=True)
class Gate:
    """One evaluated gate. ``limit`` None: nothing to compare with (no champion yet), which passes."""

    name: str
    observed: float
    limit: float | None
    passed: bool
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Candidate:
    """What the gates look at. Losses in nats/token; ``tasks`` maps a task to accuracy, stderr, chance and best_constant."""

    held_out_loss: float
    unigram_loss: float
    accuracy: float
    accuracy_stderr: float
    tasks: Mapping[str, Mapping[str, float]]
    cost_usd: float
    budget_usd: float


def tasks_above_baseline(tasks: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Tasks where accuracy exceeds both chance and the best constant answer by more than two standard errors."""
    return sorted(name for name, t in tasks.items() if t["accuracy"] - STANDARD_ERRORS * t["stderr"] > max(t["chance"], t["best_constant"]))


def evaluate(candidate: Candidate, champion: Candidate | None) -> list[Gate]:
    """Every gate, in the order they are shown. NaN never passes."""
    above = tasks_above_baseline(candidate.tasks)
    learned = candidate.held_out_loss < candidate.unigram_loss
    affordable = candidate.cost_usd <= candidate.budget_usd
    gates = [
        Gate("learned", candidate.held_out_loss, candidate.unigram_loss, learned,
             f"held-out loss {candidate.held_out_loss:.3f} against {candidate.unigram_loss:.3f} of a unigram model"),
        Gate("above_baseline", len(above), MIN_TASKS_ABOVE_BASELINE, len(above) >= MIN_TASKS_ABOVE_BASELINE,
             f"{len(above)} tasks above chance and best constant by {STANDARD_ERRORS:g} standard errors ({', '.join(above) or 'none'})"),
        Gate("within_budget", candidate.cost_usd, candidate.budget_usd, affordable,
             f"cost ${candidate.cost_usd:.4f} of a budget of ${candidate.budget_usd:.4f}"),
    ]  # fmt: skip
    return [*gates, _not_worse(candidate, champion)]


def _not_worse(candidate: Candidate, champion: Candidate | None) -> Gate:
    if champion is None:
        return Gate("not_worse_than_champion", candidate.accuracy, None, math.isfinite(candidate.accuracy), "no champion yet")
    # Unpaired: the two models may have answered different items. Paired tests are sharper and come with the comparison of models.
    noise = STANDARD_ERRORS * math.hypot(candidate.accuracy_stderr, champion.accuracy_stderr)
    limit = champion.accuracy - noise
    sentence = f"accuracy {candidate.accuracy:.4f} against champion {champion.accuracy:.4f} minus noise {noise:.4f}"
    return Gate("not_worse_than_champion", candidate.accuracy, limit, candidate.accuracy >= limit, sentence)
