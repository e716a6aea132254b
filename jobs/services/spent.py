"""Sums over charge rows: what a corpus or a build cost, by phase and stage, and what of it was lost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LOST = ("failed", "killed")  # outcomes of attempts whose money bought nothing


@dataclass(frozen=True)
class Spent:
    """Sums over charges, in USD and kWh; ``cost`` and ``energy`` are None where there is no charge."""

    cost: float | None
    wasted: float
    energy: float | None
    by_phase: Mapping[str, float]
    by_stage: Mapping[str, float]
    wasted_by_stage: Mapping[str, float]

    @classmethod
    def of(cls, charges: Iterable[Mapping[str, Any]]) -> Spent:
        given = list(charges)
        lost = [c for c in given if c["x_Outcome"] in LOST]
        return cls(
            sum(c["BilledCost"] for c in given) if given else None, sum(c["BilledCost"] for c in lost), sum(c["x_EnergyKwh"] for c in given) if given else None,
            sum_by(given, "x_Phase"), sum_by(given, "x_Stage"), sum_by(lost, "x_Stage"),
        )  # fmt: skip

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            _added(self.cost, other.cost), self.wasted + other.wasted, _added(self.energy, other.energy), _merged(self.by_phase, other.by_phase),
            _merged(self.by_stage, other.by_stage), _merged(self.wasted_by_stage, other.wasted_by_stage),
        )  # fmt: skip


def _added(a: float | None, b: float | None) -> float | None:
    return a if b is None else b if a is None else a + b


def _merged(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {key: a.get(key, 0.0) + b.get(key, 0.0) for key in (*a, *(key for key in b if key not in a))}


def sum_by(charges: Iterable[Mapping[str, Any]], key: str) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for charge in charges:
        total[charge[key]] += charge["BilledCost"]
    return dict(total)
