"""A mixture of sources for training: what a recipe asks, and how many sequences of every source each step reads. Standard library only.

Shares are of tokens. Of every source a step reads its exact share of the batch, rounded down or up; which steps round up follows the
golden-ratio rotation, whose running sum has a closed form, so what was read before any step is known in O(log steps) without replaying.

Change here: shares, phases, epoch caps. Not here: which sequences of a source are read (data_order.py).
"""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_ONE = 1 << 64  # fixed point of shares and rotation
_GOLDEN = 11400714819323198485  # _ONE / golden ratio: the rotation whose running counts stay closest to the asked ones
_EVERY_OTHER = "*"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """``share`` of the training steps reads tokens of sources in proportion to ``weights``; a source that is not named is not read."""

    weights: tuple[tuple[str, float], ...]
    share: float = 1.0

    def __post_init__(self) -> None:
        names = [name for name, _ in self.weights]
        if len(set(names)) < len(names):
            raise ValueError(f"A phase names a source twice: {names}.")
        if not all(0 <= weight < float("inf") for _, weight in self.weights) or not any(weight for _, weight in self.weights):
            raise ValueError(f"Weights of a phase must be finite, not negative, and not all 0: {dict(self.weights)}.")
        if not 0 < self.share <= 1:
            raise ValueError(f"A phase's share of the training must lie above 0 and at most at 1, not {self.share}.")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A curriculum: ``phases`` one after another, their shares adding up to 1. No phases: every sequence once per epoch, no weights.

    ``max_epochs`` maps a source (or ``*`` for all others) to how often training may read it as a whole; without an entry there is no
    limit. A source that has reached its cap hands its share to the phase's other sources in proportion to their weights.
    """

    phases: tuple[Phase, ...] = ()
    max_epochs: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.phases and abs(sum(phase.share for phase in self.phases) - 1) > 1e-9:
            raise ValueError(f"The shares of a mixture's phases must add up to 1, not {[phase.share for phase in self.phases]}.")
        if not all(epochs > 0 for _, epochs in self.max_epochs) or len(dict(self.max_epochs)) < len(self.max_epochs):
            raise ValueError(f"max_epochs must be above 0, once per source: {self.max_epochs}.")
        if self.max_epochs and not self.phases:
            raise ValueError("max_epochs needs phases: without weights every source is read equally often. Give the mixture one phase.")

    def __bool__(self) -> bool:
        return bool(self.phases)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Mixture:
        """The mixture from its plain JSON form (``dataclasses.asdict``)."""
        phases = tuple(Phase(weights=_pairs(phase["weights"]), share=phase["share"]) for phase in raw["phases"])
        return cls(phases=phases, max_epochs=_pairs(raw["max_epochs"]))


def _pairs(raw: Iterable[Iterable[Any]]) -> tuple[tuple[str, float], ...]:
    return tuple((name, value) for name, value in raw)


@dataclass(frozen=True)
class SourceSize:
    """What there is of a source: ``tokens`` (without padding) in ``sequences`` sequences."""

    sequences: int
    tokens: int


@dataclass(frozen=True)
class _Segment:
    """Steps from ``start`` that share one set of weights. ``before``: sequences read of every source before them; ``edges``: cumulative
    shares of a batch in 1/_ONE, (sources + 1); ``offset``: where the rotation starts."""

    start: int
    before: tuple[int, ...]
    edges: tuple[int, ...]
    offset: int

    def read(self, steps: int) -> tuple[int, ...]:
        """Sequences read of every source in the segment's first ``steps`` steps."""
        reached = [floor_sum(steps, _ONE, _GOLDEN, self.offset + edge) for edge in self.edges]
        return tuple(b - a for a, b in itertools.pairwise(reached))


class Plan:
    """How many sequences of every source each step reads: a function of its arguments alone.

    ``sources`` maps every source of the corpus to its size. In each step a source has its share of ``batch_sequences`` rounded down or
    up; at a cap it stops before the step that would pass it. Raises ValueError for a source the corpus does not have, and when every
    source of a phase has reached its cap before the phase ends: training on would silently read something that was not asked for.
    """

    def __init__(self, mixture: Mixture, sources: Mapping[str, SourceSize], *, steps: int, batch_sequences: int, seed: int) -> None:
        self.mixture, self.steps, self.batch_sequences, self.seed = mixture, steps, batch_sequences, seed
        self.names = tuple(sorted(sources))
        self._sizes = [sources[name] for name in self.names]
        self._check_names()
        self._caps = self._cap_sequences()
        self._segments: list[_Segment] = []
        self._build()
        self._starts = [segment.start for segment in self._segments]

    def before(self, step: int) -> dict[str, int]:
        """Sequences of every source read in the steps before ``step`` (0..steps)."""
        if not 0 <= step <= self.steps:
            raise ValueError(f"step {step} must lie between 0 and {self.steps}, the end of training.")
        segment = self._segments[bisect_right(self._starts, step) - 1]
        return {name: a + b for name, a, b in zip(self.names, segment.before, segment.read(step - segment.start), strict=True)}

    def _check_names(self) -> None:
        asked = {name for phase in self.mixture.phases for name, _ in phase.weights} | {name for name, _ in self.mixture.max_epochs} - {_EVERY_OTHER}
        if unknown := sorted(asked - set(self.names)):
            raise ValueError(f"The mixture names the sources {', '.join(unknown)}; the corpus has {', '.join(self.names) or 'none'}.")

    def _cap_sequences(self) -> list[int | None]:
        caps = dict(self.mixture.max_epochs)
        found = [caps.get(name, caps.get(_EVERY_OTHER)) for name in self.names]
        return [None if cap is None else int(Fraction(cap) * size.sequences) for cap, size in zip(found, self._sizes, strict=True)]

    def _build(self) -> None:
        start, before, done, full = 0, (0,) * len(self.names), Fraction(0), frozenset[int]()
        for number, phase in enumerate(self.mixture.phases):
            done += Fraction(phase.share)
            end = self.steps if number == len(self.mixture.phases) - 1 else min(self.steps, int(done * self.steps + Fraction(1, 2)))
            while start < end:
                segment = _Segment(start, before, self._edges(phase, full, number, start), self._offset(start))
                length, reached = self._until_cap(segment, end - start)
                full |= reached
                if length:
                    self._segments.append(segment)
                    start, before = start + length, tuple(a + b for a, b in zip(before, segment.read(length), strict=True))

    def _edges(self, phase: Phase, full: frozenset[int], number: int, start: int) -> tuple[int, ...]:
        """Cumulative shares of a batch: tokens asked of a source over the tokens one of its sequences holds."""
        weights = dict(phase.weights)
        shares = [
            Fraction(0) if place in full else Fraction(weights.get(name, 0)) * size.sequences / size.tokens
            for place, (name, size) in enumerate(zip(self.names, self._sizes, strict=True))
        ]
        if not (total := sum(shares)):
            ended = ", ".join(f"{self.names[place]} ({self._caps[place]} sequences)" for place in sorted(full))
            raise ValueError(
                f"Every source of phase {number + 1} has reached its cap by step {start} of {self.steps}: {ended}. "
                "Raise max_epochs, give the phase another source, or train on fewer tokens."
            )
        edges, reached = [0], Fraction(0)
        for share in shares:
            reached += share
            edges.append(int(reached / total * self.batch_sequences * _ONE))
        return tuple(edges)

    def _offset(self, start: int) -> int:
        return int.from_bytes(hashlib.sha256(f"mixture:{self.seed}:{start}".encode()).digest()[:8], "big")

    def _until_cap(self, segment: _Segment, steps: int) -> tuple[int, frozenset[int]]:
        """(steps until a source would pass its cap, those sources); all ``steps`` and none if no source does."""

        def passed(count: int) -> frozenset[int]:
            read = segment.read(count)
            return frozenset(
                place
                for place, cap in enumerate(self._caps)
                if cap is not None and segment.edges[place] < segment.edges[place + 1] and segment.before[place] + read[place] > cap
            )

        low, high = 0, steps  # at low nobody has passed
        if not passed(high):
            return steps, frozenset()
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if passed(middle) else (middle, high)
        return low, passed(high)


def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Sum of floor((a·i + b) / m) over i = 0..n-1 in O(log m), for a, b >= 0 and m > 0 (Graham, Knuth, Patashnik, Concrete Mathematics, 3.5)."""
    total = 0
    while n:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        last = a * n + b
        if last < m:
            break
        n, b, m, a = last // m, last % m, a, m
    return total
