"""A rule: a name, one measured number, and the range in which a document is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jobs.stages.rules.features import Features


@dataclass(frozen=True)
class Rule:
    """A document is kept while ``minimum <= measure(features) <= maximum``; None means no limit on that side, twice None a mere score."""

    name: str
    measure: Callable[[Features], float]
    minimum: float | None = None
    maximum: float | None = None

    def broken_limit(self, value: float) -> float | None:
        """The limit that ``value`` breaks, or None when the document may stay."""
        if self.minimum is not None and value < self.minimum:
            return self.minimum
        if self.maximum is not None and value > self.maximum:
            return self.maximum
        return None

    @property
    def may_reject(self) -> bool:
        return self.minimum is not None or self.maximum is not None
