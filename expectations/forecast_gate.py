"""Whether a forecast training is worth its money: go, ask a person, or stop. Pure; change what decides here.

over         cost so far and forecast cost are above the recipe's budget, or above what a month's budget has left: the recipe's ``on_over_budget``
hopeless     even the upper end of the expected gain over the champion is below the recipe's minimum gain: likewise
doubtful     the expected gain is below the minimum, its upper end is not, or it cannot be compared: ask
else go. Without a minimum gain, or without a champion, only money decides. Gains are in points (hundredths of accuracy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Cost:
    """USD: ``spent`` on the forecast already, and what the training will cost, with its 95 % interval."""

    spent: float
    predicted: float
    low: float
    high: float
    budget: float
    month_left: float | None = None

    @property
    def limit(self) -> float:
        return self.budget if self.month_left is None else min(self.budget, self.month_left)

    @property
    def over(self) -> bool:
        return not self.spent + self.predicted <= self.limit  # NaN is over


@dataclass(frozen=True)
class Gain:
    """Expected accuracy minus the champion's, in points, with its 95 % interval."""

    champion: str
    predicted: float
    low: float
    high: float

    def usd_per_point(self, cost: float) -> float | None:
        """None where nothing is gained."""
        return cost / self.predicted if self.predicted > 0 else None


@dataclass(frozen=True)
class Decision:
    verdict: str
    why: str
    sentences: tuple[str, ...]
    usd_per_point: float | None


def gain_over(champion: str, accuracy: float, stderr: float, *, predicted: float, low: float, high: float) -> Gain:
    """The forecast's interval and the champion's own sampling error, in quadrature. Accuracies between 0 and 1."""
    noise = NORMAL_95 * stderr
    point = 100 * (predicted - accuracy)
    return Gain(champion, point, point - 100 * math.hypot(predicted - low, noise), point + 100 * math.hypot(high - predicted, noise))


def decide(cost: Cost, gain: Gain | None, *, minimum: float | None, on_over: str, incomparable: str = "") -> Decision:
    """``gain`` None: no champion, or (``incomparable`` says why) one that answered another suite."""
    per_point = gain.usd_per_point(cost.predicted) if gain else None
    sentences = [_money(cost), _gained(gain, per_point, minimum, incomparable)]
    if cost.over:
        return Decision(on_over, "over budget", tuple(sentences), per_point)
    if minimum is not None and gain is not None and not gain.high >= minimum:
        return Decision(on_over, "not worth it", tuple(sentences), per_point)
    if minimum is not None and (incomparable or (gain is not None and not gain.predicted >= minimum)):
        return Decision("ask", "doubtful gain", tuple(sentences), per_point)
    return Decision("go", "within budget", tuple(sentences), per_point)


def _money(cost: Cost) -> str:
    month = "" if cost.month_left is None else f"; this month's budget has {cost.month_left:.4f} USD left"
    return (
        f"the training would cost {cost.predicted:.4f} USD (95 %: {cost.low:.4f} to {cost.high:.4f}) after {cost.spent:.4f} USD for the forecast; "
        f"the budget is {cost.budget:.4f} USD{month}"
    )


def _gained(gain: Gain | None, per_point: float | None, minimum: float | None, incomparable: str) -> str:
    asked = "" if minimum is None else f"; the recipe asks for at least {minimum:g}"
    if gain is None:
        return f"expected gain over the champion: {incomparable or 'there is no champion yet'}{asked}"
    price = "nothing gained, so no price per point" if per_point is None else f"{per_point:.4f} USD per point"
    return f"expected gain over champion {gain.champion}: {gain.predicted:+.2f} points (95 %: {gain.low:+.2f} to {gain.high:+.2f}), {price}{asked}"
