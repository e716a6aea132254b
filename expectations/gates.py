"""What a model must show before it is promoted to champion. Pure functions; change a promotion threshold here.

A gate compares one observed number with one limit, and its sentence is stored and shown, whether it passed or not. Against the champion
the comparison is paired where both answered the same items; where they did not, it is today's unpaired one, and its sentence says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

STANDARD_ERRORS = 2.0  # how far beyond noise a difference must be to count
MIN_TASKS_ABOVE_BASELINE = 2
SIGNIFICANCE = 0.05  # how often, at most, a model as good as the champion is refused: over all categories and averages together


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


class PairedLoss(Protocol):
    """Candidate against champion on the same ``n`` items: ``level`` category or average, ``difference`` candidate minus champion.

    ``p_adjusted``: one-sided (the candidate is worse), adjusted over all of them. ``detectable``: the loss found with 80 % power.
    models.gauntlet.paired.Loss is one.
    """

    @property
    def name(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def difference(self) -> float: ...
    @property
    def p_adjusted(self) -> float: ...
    @property
    def detectable(self) -> float: ...


def tasks_above_baseline(tasks: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Tasks where accuracy exceeds both chance and the best constant answer by more than two standard errors."""
    return sorted(name for name, t in tasks.items() if t["accuracy"] - STANDARD_ERRORS * t["stderr"] > max(t["chance"], t["best_constant"]))


def evaluate(candidate: Candidate, champion: Candidate | None, paired: Sequence[PairedLoss] = (), unpaired_because: str = "") -> list[Gate]:
    """Every gate, in the order they are shown. NaN never passes. Without ``paired`` the champion is compared unpaired, for the reason given."""
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
    if champion is not None and paired:
        averages, categories = ([loss for loss in paired if loss.level == level] for level in ("average", "category"))
        return [*gates, _no_loss("not_worse_than_champion", averages), _no_loss("no_category_worse", categories)]
    return [*gates, _not_worse(candidate, champion, unpaired_because)]


def _no_loss(name: str, losses: Sequence[PairedLoss]) -> Gate:
    """None of ``losses`` is significant. ``observed``: the smallest adjusted p. Nothing to judge, and NaN, do not pass."""
    worst = min(losses, key=lambda loss: (loss.p_adjusted, loss.difference), default=None)
    if worst is None:
        return Gate(name, math.nan, SIGNIFICANCE, False, "no category was answered by both models")
    passed = all(loss.p_adjusted >= SIGNIFICANCE and math.isfinite(loss.difference) for loss in losses)
    listed = "; ".join(
        f"{x.name} {100 * x.difference:+.2f} points (p {x.p_adjusted:.3f}, a loss of {100 * x.detectable:.2f} would be seen with 80 % power)" for x in losses
    )
    return Gate(name, worst.p_adjusted, SIGNIFICANCE, passed, f"paired with the champion on {sum(x.n for x in losses)} same items: {listed}")


def _not_worse(candidate: Candidate, champion: Candidate | None, because: str) -> Gate:
    if champion is None:
        return Gate("not_worse_than_champion", candidate.accuracy, None, math.isfinite(candidate.accuracy), "no champion yet")
    noise = STANDARD_ERRORS * math.hypot(candidate.accuracy_stderr, champion.accuracy_stderr)
    limit = champion.accuracy - noise
    sentence = f"accuracy {candidate.accuracy:.4f} against champion {champion.accuracy:.4f} minus noise {noise:.4f}"
    sentence += f"; unpaired, because {because}" if because else "; unpaired"
    return Gate("not_worse_than_champion", candidate.accuracy, limit, candidate.accuracy >= limit, sentence)
