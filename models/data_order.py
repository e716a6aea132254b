"""Which sequences a training step reads: a pure function of seed and step, so a resumed run reads exactly what it would have read.

Change here: the order of training data. Not here: what a batch holds (train_loop.py).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


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
