"""Which sequences a training step reads: a pure function of seed and step, so a resumed run reads exactly what it would have read.

Change here: the order of training data. Not here: what a batch holds (train_loop.py), how many sequences of which source (mixture.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from models.mixture import Mixture, Plan, SourceSize


class DataOrder(Protocol):
    """The sequences of a whole training. ``seed`` and ``batch_sequences`` as in LoopConfig; ``n_sequences`` it draws from."""

    seed: int
    batch_sequences: int
    n_sequences: int

    def batch(self, step: int) -> np.ndarray:
        """Indices (batch_sequences,) int64 of the sequences that ``step`` (from 0) reads."""

    def reads(self, steps: int) -> np.ndarray:
        """How often each sequence is read in the first ``steps`` steps, (n_sequences,) int64."""

    def digest(self) -> str:
        """16 hex digits over everything the order follows from, so equal for equal orders of one data set."""


@lru_cache(maxsize=2)  # a step touches one epoch, or two at their seam
def epoch_order(seed: int, epoch: int, n_sequences: int) -> np.ndarray:
    """The order of ``n_sequences`` sequences in one epoch, (n,) int64, read-only.

    Sorts raw PCG64 words: numpy promises that stream for all versions, and does not promise it for ``Generator.permutation``.
    """
    words = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n_sequences)
    order = np.argsort(words, kind="stable")
    order.setflags(write=False)
    return order


def batch_indices(*, seed: int, step: int, batch_sequences: int, n_sequences: int) -> np.ndarray:
    """Indices (batch_sequences,) int64 of the sequences that ``step`` (from 0) reads.

    Steps walk through a fresh permutation per epoch; a batch at an epoch's end continues in the next epoch. Raises ValueError
    without sequences or for a negative step or seed.
    """
    if n_sequences < 1 or batch_sequences < 1:
        raise ValueError(f"Cannot draw {batch_sequences} sequences from {n_sequences}: both must be at least 1.")
    if step < 0 or seed < 0:
        raise ValueError(f"step {step} and seed {seed} must not be negative.")
    places = np.arange(step * batch_sequences, (step + 1) * batch_sequences)
    epochs, offsets = np.divmod(places, n_sequences)
    indices = np.empty(batch_sequences, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = epoch_order(seed, int(epoch), n_sequences)[offsets[here]]
    return indices


class ShuffledOrder:
    """Every sequence once per epoch, in an order of its own per epoch."""

    def __init__(self, *, seed: int, batch_sequences: int, n_sequences: int) -> None:
        self.seed, self.batch_sequences, self.n_sequences = seed, batch_sequences, n_sequences

    def batch(self, step: int) -> np.ndarray:
        return batch_indices(seed=self.seed, step=step, batch_sequences=self.batch_sequences, n_sequences=self.n_sequences)

    def reads(self, steps: int) -> np.ndarray:
        epochs, rest = divmod(steps * self.batch_sequences, self.n_sequences)
        found = np.full(self.n_sequences, epochs, dtype=np.int64)
        found[epoch_order(self.seed, epochs, self.n_sequences)[:rest]] += 1
        return found

    def digest(self) -> str:
        return _digest({"order": "shuffled-1", "seed": self.seed, "batch_sequences": self.batch_sequences, "n_sequences": self.n_sequences})


class MixtureOrder:
    """Sources by the shares of a mixture; of each source every sequence once per epoch of that source.

    ``sources`` (n_sequences,): number of each sequence's source, in the sorted names of ``sizes``. Raises ValueError as Plan does.
    """

    def __init__(self, mixture: Mixture, sizes: Mapping[str, SourceSize], sources: np.ndarray, *, steps: int, batch_sequences: int, seed: int) -> None:
        self.seed, self.batch_sequences, self.n_sequences = seed, batch_sequences, len(sources)
        self.plan = Plan(mixture, sizes, steps=steps, batch_sequences=batch_sequences, seed=seed)
        self._members = {name: np.flatnonzero(np.asarray(sources) == number) for number, name in enumerate(self.plan.names)}
        if different := {name: len(rows) for name, rows in self._members.items() if len(rows) != sizes[name].sequences}:
            raise ValueError(f"Sequences of {different} do not match the sizes given: {dict(sizes)}.")
        self._sizes = dict(sizes)
        self._epoch = lru_cache(maxsize=2 * len(self._members))(self._epoch_of)  # a step touches one epoch of a source, or two at their seam

    def batch(self, step: int) -> np.ndarray:
        """Indices (batch_sequences,) int64 of the sequences that ``step`` reads, source by source."""
        before, after = self.plan.before(step), self.plan.before(step + 1)
        return np.concatenate([self._range(name, before[name], after[name]) for name in self.plan.names])

    def reads(self, steps: int) -> np.ndarray:
        found = np.zeros(self.n_sequences, dtype=np.int64)
        for name, count in self.plan.before(steps).items():
            epochs, rest = divmod(count, len(self._members[name]))
            found[self._members[name]] = epochs
            found[self._epoch(name, epochs)[:rest]] += 1
        return found

    def digest(self) -> str:
        sizes = {name: asdict(size) for name, size in self._sizes.items()}
        settings = {"order": "mixture-1", "seed": self.seed, "batch_sequences": self.batch_sequences, "steps": self.plan.steps}
        return _digest({**settings, "mixture": asdict(self.plan.mixture), "sources": sizes})

    def _range(self, name: str, first: int, last: int) -> np.ndarray:
        """The ``first``-th to ``last``-th reading of a source."""
        epochs, offsets = np.divmod(np.arange(first, last), len(self._members[name]))
        indices = np.empty(last - first, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._epoch(name, int(epoch))[offsets[here]]
        return indices

    def _epoch_of(self, name: str, epoch: int) -> np.ndarray:
        members = self._members[name]
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}:{name}".encode()).digest()[:8], "big")
        return members[epoch_order.__wrapped__(seed, epoch, len(members))]


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
